"""The exact-tail rule: the last p * count tokens are `count` copies of one block of p tokens.

As vLLM's `repetition_detection` (its default of three copies of one token fires on ordinary text, so a minimum number
of tokens is asked for besides). Blind to any change between copies, and never wrong about scattered boilerplate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lowmem.generate.loops.base import Loop, periodic_from

SUSPICIOUS = 24


class TailRule:
    """Keeps, for every period, for how many tokens the text has had it: one vector operation a token."""

    def __init__(self, *, count: int = 4, longest: int = 512, shortest: int = 1, tokens: int = 64) -> None:
        self._count, self._longest, self._least = count, longest, tokens
        self._periods: NDArray[np.int64] = np.arange(1, longest + 1, dtype=np.int64)
        self._first = shortest - 1
        self._restart([])

    def push(self, tokens: Sequence[int], *, strict: bool) -> Loop | None:
        self._take(tokens[-1])
        count = 2 * self._count if strict else self._count
        needed = np.maximum(self._periods * count, self._least) - self._periods
        found = np.flatnonzero(self._runs[self._first :] >= needed[self._first :])
        if not len(found):
            return None
        period = int(found[0]) + self._first + 1
        monotone = len(set(tokens[-self._least :])) <= 2
        if monotone and self._runs[period - 1] + period < 2 * self._least:
            return None
        return Loop("tail", periodic_from(tokens, period), period)

    @property
    def repeating(self) -> bool:
        """Whether the end of the text is the second copy of something: too early to fire, enough to wait."""
        return bool((self._runs >= np.maximum(self._periods, SUSPICIOUS)).any())

    def forget(self, tokens: Sequence[int]) -> None:
        self._restart(tokens)

    def _restart(self, tokens: Sequence[int]) -> None:
        """Runs that began before what is kept are counted from there; none matters beyond that."""
        self._runs: NDArray[np.int64] = np.zeros(self._longest, dtype=np.int64)
        self._recent: NDArray[np.int64] = np.full(self._longest, -1, dtype=np.int64)  # newest first
        for token in tokens[-(2 * self._count + 1) * self._longest :]:
            self._take(token)

    def _take(self, token: int) -> None:
        self._runs = np.where(self._recent == token, self._runs + 1, 0)
        self._recent[1:] = self._recent[:-1]
        self._recent[0] = token
