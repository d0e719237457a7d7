"""The n-gram rule: some n tokens in a row stand `count` times within the last `window` tokens.

Source: arXiv 2606.02011 (n = 20, count = 4, window = 1024; read through digests, so the edges are our reading:
overlapping occurrences count, ids are compared, thinking and answer are both scanned). An exact loop of period p is
noticed n + (count - 1) p tokens after it began, and never when that exceeds the window; hence a second, longer rule.

The bare rule also fires on a ruled line and on a table of equal rows, so by default it is guarded (our choice):
a short period must have gone on for a while, n-grams of one or two different tokens for longer, what stands between
equal n-grams must be about the same each time, and inside code or tables it must be exactly the same, twice as often.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from itertools import pairwise

from lowmem.generate.loops.base import Loop, Periodicity

MODULUS, BASE = (1 << 61) - 1, 1_000_003
SHORT_PERIOD, SHORT_COVERAGE = 16, 64
MONOTONE_COVERAGE = 128
LIKENESS = 0.8
"""Share of its tokens that a turn must have in common with the turn before."""


class NGramRule:
    """`push` costs a few integer operations; matches found by hash are compared token by token before it fires."""

    def __init__(
        self, *, n: int = 20, count: int = 4, window: int = 1024, name: str = "ngram", guarded: bool = True
    ) -> None:
        self._n, self._count, self._window = n, count, window
        self._name, self._guarded = name, guarded
        self._leading = pow(BASE, n, MODULUS)
        self._hash = 0
        self._live: deque[int] = deque()
        self._starts: dict[int, deque[int]] = {}
        self._periodicity = Periodicity()

    def push(self, tokens: Sequence[int], *, strict: bool) -> Loop | None:
        self._roll(tokens)
        length = len(tokens)
        if length < self._n:
            return None
        start = length - self._n
        self._live.append(self._hash)
        self._starts.setdefault(self._hash, deque()).append(start)
        if len(self._live) > self._window - self._n + 1:
            self._expire()
        strict = strict and self._guarded
        needed = 2 * self._count if strict else self._count
        starts = self._starts[self._hash]
        if len(starts) < needed:
            return None
        same = [at for at in starts if tokens[at : at + self._n] == tokens[start:length]]
        if len(same) < needed:
            return None
        period = same[-1] - same[-2]
        onset = self._periodicity.since(tokens, period)
        if strict and length - onset < max((needed - 1) * period, MONOTONE_COVERAGE):
            return None  # code repeats itself around different names: only copies count
        if self._guarded and not _believable(tokens, [*same[-needed:], length], period, covered=length - onset):
            return None
        return Loop(self._name, min(onset, same[-needed]), period)

    def forget(self, tokens: Sequence[int]) -> None:
        self._hash, self._periodicity = 0, Periodicity()
        self._live.clear()
        self._starts.clear()
        first = max(0, len(tokens) - self._window)
        for end in range(first + 1, len(tokens) + 1):
            self._hash = (self._hash * BASE + tokens[end - 1] + 1) % MODULUS
            if end - first > self._n:
                self._hash = (self._hash - (tokens[end - 1 - self._n] + 1) * self._leading) % MODULUS
            if end - first >= self._n:
                self._live.append(self._hash)
                self._starts.setdefault(self._hash, deque()).append(end - self._n)

    def _roll(self, tokens: Sequence[int]) -> None:
        self._hash = (self._hash * BASE + tokens[-1] + 1) % MODULUS
        if len(tokens) > self._n:
            self._hash = (self._hash - (tokens[-1 - self._n] + 1) * self._leading) % MODULUS

    def _expire(self) -> None:
        gone = self._live.popleft()
        starts = self._starts[gone]
        starts.popleft()
        if not starts:
            del self._starts[gone]


def _believable(tokens: Sequence[int], starts: Sequence[int], period: int, *, covered: int) -> bool:
    """Not a ruled line, a row of dots, a handful of equal table rows, or boilerplate around different things.

    `starts`: of the equal n-grams, and the end of the text; `covered`: tokens at its end that have the period.
    """
    if len(set(tokens[starts[-2] :])) <= 2:
        return covered >= MONOTONE_COVERAGE
    if period < SHORT_PERIOD:
        return covered >= max(4 * period, SHORT_COVERAGE)
    turns = [tokens[a:b] for a, b in pairwise(starts[:-1])]
    return covered >= 2 * period or all(_alike(older, newer) for older, newer in pairwise(turns))


def _alike(older: Sequence[int], newer: Sequence[int]) -> bool:
    """Whether two turns of a loop differ in little: a counter, a name, a sentence more."""
    shared = (Counter(older) & Counter(newer)).total()
    return shared >= LIKENESS * max(len(older), len(newer))
