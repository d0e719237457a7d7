"""The n-gram rule by definition: look at every pair of n-grams, each time."""

from __future__ import annotations

from collections.abc import Sequence


def fires_at(tokens: Sequence[int], *, n: int, count: int, window: int) -> int | None:
    """Tokens read when some n-gram first stands `count` times within the last `window` tokens."""
    for length in range(n, len(tokens) + 1):
        recent = tokens[max(0, length - window) : length]
        last = recent[-n:]
        if sum(recent[at : at + n] == last for at in range(len(recent) - n + 1)) >= count:
            return length
    return None
