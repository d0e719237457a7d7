"""Tokens with which a reasoning model takes back what it said.

Penalising about fifty of them shortens thoughts of quantized reasoning models (arXiv 2606.00206, read as an abstract:
the list is ours). Every spelling counts: with and without a space before it, and capitalised.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_WORDS = """
wait hmm hmmm hm alternatively however actually but maybe perhaps although though again recheck
reconsider rethink oops sorry uh um well hold let's verify double-check otherwise instead unless yet
still wrong mistake incorrect confused confusing unsure uncertain doubt
"""
WORDS = frozenset(_WORDS.split())


def hesitation_tokens(text_of: Callable[[int], str], vocabulary: int) -> Tensor:
    """Ids (K,) of the tokens whose text is one of `WORDS`."""
    return torch.tensor(
        [token for token in range(vocabulary) if text_of(token).strip().lower() in WORDS], dtype=torch.long
    )
