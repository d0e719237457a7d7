"""Plain text as rows of `max_length` tokens.

Documents end in the end-of-text token and follow each other without gaps; `position_ids` restart at every document,
from which transformers builds a mask that keeps documents from seeing each other, as long as `attention_mask` is None
and no cache is used. Architectures that do not read `position_ids` that way would leak, so only those of
`PACKABLE` get such rows (each is tested: packed logits equal those of each document alone). All others get
rows that hold one document, or a piece of one, each.

Unlike rows of other formats these need the whole text tokenized up front (4 bytes per token): where a row begins
depends on all tokens before it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lowmem.data.batch import IGNORE
from lowmem.data.encoder import Encoder
from lowmem.data.samples import TokenRow

PACKABLE = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "smollm3"}
)
"""Values of `model_type` for which packed documents were shown not to see each other."""

_PIECE = 1 << 20
"""Characters tokenized at a time: a tokenizer needs some hundred bytes per character of one call."""


@dataclass(frozen=True)
class TokenStream:
    """All documents one after the other. Document n is `ids[starts[n] : starts[n + 1]]`."""

    ids: npt.NDArray[np.uint32]
    starts: tuple[int, ...]

    @property
    def ends(self) -> tuple[int, ...]:
        return (*self.starts[1:], len(self.ids)) if self.starts else ()


def tokenize(documents: Iterable[str], encoder: Encoder) -> TokenStream:
    """Each document as the tokenizer's prefix, its text, and the end-of-text token; blank ones are left out."""
    pieces: list[npt.NDArray[np.uint32]] = []
    starts: list[int] = []
    length = 0
    for document in documents:
        if not document.strip():
            continue
        starts.append(length)
        ids = [*encoder.prefix, *(token for piece in _pieces(document) for token in encoder.encode(piece)), encoder.eos]
        pieces.append(np.asarray(ids, dtype=np.uint32))
        length += len(ids)
    return TokenStream(np.concatenate(pieces) if pieces else np.empty(0, np.uint32), tuple(starts))


def row_bounds(stream: TokenStream, max_length: int, *, packed: bool) -> list[tuple[int, int]]:
    """Where each row begins and ends in the stream. Rows of a single token, with nothing to predict, are left out."""
    spans = [(0, len(stream.ids))] if packed else list(zip(stream.starts, stream.ends, strict=True))
    rows = ((begin, min(begin + max_length, stop)) for first, stop in spans for begin in range(first, stop, max_length))
    return [(begin, end) for begin, end in rows if end - begin > 1]


def token_row(stream: TokenStream, begin: int, end: int, *, packed: bool) -> TokenRow:
    """Tokens [begin, end): all trained but the first of a document, which nothing before it can predict."""
    ids = tuple(stream.ids[begin:end].tolist())
    if not packed:
        return TokenRow(ids, ids)
    labels, positions = list(ids), list(range(len(ids)))
    first = bisect_right(stream.starts, begin)
    for start in stream.starts[first : bisect_right(stream.starts, end - 1)]:
        labels[start - begin] = IGNORE
        positions[start - begin :] = range(end - start)
    return TokenRow(ids, tuple(labels), tuple(positions))


def _pieces(document: str) -> Iterator[str]:
    """The document, cut where a line begins if it is long."""
    begin = 0
    while len(document) - begin > _PIECE:
        cut = re.compile(r"\n(?=\S)").search(document, begin + _PIECE)
        if cut is None:
            break
        yield document[begin : cut.end()]
        begin = cut.end()
    yield document[begin:]
