"""The counter rule: the same sentences again and again with a number that counts.

"Wait, let me check step 12. Wait, let me check step 13." has no repeated n-gram longer than the text between two
numbers. Here every number counts as one token of one kind, so such a loop is periodic; it fires when the numbers of
successive turns form arithmetic progressions and at least one of them moves. Rows of a table or of JSON have several
numbers a turn, or numbers in no progression, or few words: they do not fire. The rule is our own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from lowmem.generate.loops.base import Loop, Periodicity
from lowmem.generate.loops.ngram import NGramRule

NUMBER = -1
SHORT_TURN = 24
"""Turns shorter than this must be repeated more often."""


class CounterRule:
    """`text_of`: the text of a token, for telling digits and words."""

    def __init__(self, text_of: Callable[[int], str], *, n: int = 6, window: int = 1024, least: int = 64) -> None:
        self._text_of, self._window, self._least = text_of, window, least
        self._n = n
        self._forms: dict[int, tuple[str | None, bool]] = {}
        self._restart()

    def push(self, tokens: Sequence[int], *, strict: bool) -> Loop | None:
        if not self._take(tokens[-1], len(tokens) - 1):
            return None
        found = self._grams.push(self._kinds, strict=False)
        if found is None or self._kinds[-1] == NUMBER:  # the value of a number is known once it has ended
            return None
        turns = 4 if found.period >= SHORT_TURN else 6
        turns *= 2 if strict else 1
        start = self._periodicity.since(self._kinds, found.period)
        covered = len(self._kinds) - start
        if covered < max(turns * found.period, self._least) or not self._counts(found.period, turns):
            return None
        return Loop("counter", self._places[start], self._places[-1] - self._places[-1 - found.period])

    def forget(self, tokens: Sequence[int]) -> None:
        self._restart()
        first = max(0, len(tokens) - 2 * self._window)
        for index in range(first, len(tokens)):
            if self._take(tokens[index], index):
                self._grams.push(self._kinds, strict=False)

    def _restart(self) -> None:
        self._kinds: list[int] = []
        self._values: list[str] = []
        self._places: list[int] = []
        self._wordy: list[bool] = []
        self._periodicity = Periodicity()
        self._grams = NGramRule(n=self._n, count=4, window=self._window, guarded=False)

    def _take(self, token: int, place: int) -> bool:
        """Whether the token began something new: further digits of a number belong to it."""
        digits, wordy = self._form(token)
        if digits is not None and self._kinds and self._kinds[-1] == NUMBER:
            self._values[-1] += digits
            return False
        self._kinds.append(token if digits is None else NUMBER)
        self._values.append(digits or "")
        self._places.append(place)
        self._wordy.append(wordy)
        return True

    def _form(self, token: int) -> tuple[str | None, bool]:
        """The token's digits if it is a number, and whether it has letters."""
        if token not in self._forms:
            text = self._text_of(token)
            bare = text.strip()
            self._forms[token] = bare if bare.isdecimal() else None, any(c.isalpha() for c in text)
        return self._forms[token]

    def _counts(self, period: int, turns: int) -> bool:
        """Whether the last `turns` blocks are words around few numbers, which count."""
        end = len(self._kinds)
        slots = [at for at in range(end - period, end) if self._kinds[at] == NUMBER]
        words = sum(self._wordy[end - period :])
        if not slots or len(slots) > max(1, period // SHORT_TURN) or 2 * words < period:
            return False
        moves = [self._step(at, period, turns) for at in slots]
        return None not in moves and any(moves)

    def _step(self, at: int, period: int, turns: int) -> int | None:
        """The difference between successive values of the number at `at`, where it is always the same."""
        values = [int(self._values[at - turn * period]) for turn in range(turns)]
        steps = {newer - older for newer, older in pairwise(values)}
        return steps.pop() if len(steps) == 1 else None
