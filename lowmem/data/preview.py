"""One example as a person should see it before training: what is trained is between brackets."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from lowmem.data.batch import IGNORE
from lowmem.data.encoder import Encoder
from lowmem.data.samples import Example, TokenRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "⟦", "⟧"


def preview(example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    """The example as text, special tokens included, trained tokens between ⟦ and ⟧; no colours."""
    encoder = Encoder(tokenizer)
    if example.option_ids is not None:
        options = [encoder.decode((token,)) for token in example.option_ids]
        head = f"{example.where}: {example.tokens} tokens, scored over {len(options)} one-token options"
        return "\n".join([head, encoder.decode(example.rows[0].ids) + _options(options, example.gold)])
    trained = sum(row.trained for row in example.rows)
    head = f"{example.where}: {example.tokens} tokens, {trained} trained"
    marks = ["right: " if n == example.gold else "wrong: " for n in range(len(example.rows))]
    rows = [_marked(row, encoder) for row in example.rows]
    return "\n".join(
        [head, *(f"{mark}{row}" for mark, row in zip(marks, rows, strict=True))] if example.options else [head, *rows]
    )


def _options(options: list[str], gold: int | None) -> str:
    return " | ".join(f"{OPEN}{text}{CLOSE}" if n == gold else text for n, text in enumerate(options)).join((" → ", ""))


def _marked(row: TokenRow, encoder: Encoder) -> str:
    """Runs of trained and untrained tokens, decoded run by run. The first token has nothing to be predicted from."""
    flags = [False, *(label != IGNORE for label in row.labels[1:])]
    text = ""
    for trained, run in groupby(zip(flags, row.ids, strict=True), key=lambda pair: pair[0]):
        part = encoder.decode([token for _, token in run])
        text += f"{OPEN}{part}{CLOSE}" if trained else part
    return text
