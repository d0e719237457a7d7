"""The novelty rule: almost nothing in the last tokens is new.

Sentences of a stuck text return in changing order and with small changes, so that no long n-gram repeats `count`
times. What gives them away is that nearly every short n-gram has stood before. The share is counted over the last
`span` tokens against the `window` before. The rule is our own; its constants were set on texts that do not loop
(`examples/bench_rescue.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from lowmem.generate.loops.base import Loop

MODULUS, BASE = (1 << 61) - 1, 1_000_003


class NoveltyRule:
    """Fires when at most `1 - share` of the last `span` n-grams are new."""

    def __init__(self, *, n: int = 8, span: int = 320, window: int = 1536, share: float = 0.92) -> None:
        self._n, self._span, self._window, self._share = n, span, window, share
        self._leading = pow(BASE, n, MODULUS)
        self._restart()

    def push(self, tokens: Sequence[int], *, strict: bool) -> Loop | None:
        self._take(tokens, len(tokens))
        if strict or len(self._old) < self._span or self._known < self._share * self._span:
            return None
        distance = self._distance
        return None if distance is None else Loop("novelty", len(tokens) - self._span, distance)

    def forget(self, tokens: Sequence[int]) -> None:
        self._restart()
        first = max(0, len(tokens) - self._window - self._span)
        for end in range(first + 1, len(tokens) + 1):
            self._take(tokens, end, first)

    def _restart(self) -> None:
        self._hash, self._known = 0, 0
        self._distance: int | None = None
        self._old: deque[bool] = deque()
        self._live: deque[int] = deque()
        self._last: dict[int, int] = {}

    def _take(self, tokens: Sequence[int], end: int, first: int = 0) -> None:
        """The token before `end` of a sequence that is read from `first`."""
        n = self._n
        self._hash = (self._hash * BASE + tokens[end - 1] + 1) % MODULUS
        if end - first > n:
            self._hash = (self._hash - (tokens[end - 1 - n] + 1) * self._leading) % MODULUS
        if end - first < n:
            return
        before = self._last.get(self._hash)
        known = before is not None and end - before <= self._window
        if known and before is not None:
            self._distance = end - before
        self._last[self._hash] = end
        self._live.append(self._hash)
        if len(self._live) > self._window:
            gone = self._live.popleft()
            if self._last.get(gone, end) <= end - self._window:
                self._last.pop(gone, None)
        self._old.append(known)
        self._known += known
        if len(self._old) > self._span:
            self._known -= self._old.popleft()
