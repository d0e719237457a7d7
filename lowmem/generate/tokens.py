"""What the tokens of a tokenizer mean to decoding: their texts, and which of them end an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lowmem.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Prompt = str | Sequence[int]
"""Text, tokenized with the tokenizer's own special tokens, or token ids, taken as they are."""


class TokenTexts:
    """The text of each token by itself, decoded once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = str(self._tokenizer.decode([token]))
        return self._known[token]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Token ids of `prompt`; an empty text becomes the tokenizer's begin (else end) of text."""
    ids = [int(token) for token in (tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt)]
    if not ids:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise ConfigError("the prompt is empty and the tokenizer has no begin-of-text token; give some text")
        ids = [int(start)]
    return ids


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that ends an answer: the generation config's, the model config's and the tokenizer's."""
    ends: set[int] = set()
    for given in (
        getattr(model.generation_config, "eos_token_id", None),
        getattr(model.config, "eos_token_id", None),
        tokenizer.eos_token_id,
    ):
        ends.update([given] if isinstance(given, int) else given or ())
    return frozenset(ends)


def context_of(model: PreTrainedModel) -> int | None:
    """Positions that the model has; None where it does not say."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return None if limit is None else int(limit)
