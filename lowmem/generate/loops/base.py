"""What a rule is, and what it reports.

A rule reads the tokens of one sequence as they are decoded and says at which token it is sure that the text repeats
itself. Rules are small state machines; going back (`forget`) leaves them as if the later tokens had never come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Loop:
    """A repetition: from token `onset` on, the text has (about) the period `period`; noticed by `rule`."""

    rule: str
    onset: int
    period: int


class Rule(Protocol):
    """One way of noticing a loop. `tokens` is the whole sequence so far, shared and not copied."""

    def push(self, tokens: Sequence[int], *, strict: bool) -> Loop | None:
        """Takes the last token of `tokens`. `strict`: inside code or a table, where repetition is ordinary."""
        ...

    def forget(self, tokens: Sequence[int]) -> None:
        """From now on the sequence is `tokens`, a beginning of what was pushed."""
        ...


def periodic_from(tokens: Sequence[int], period: int) -> int:
    """The first index from which `tokens` has this period, to its end."""
    index = len(tokens) - period
    while index > 0 and tokens[index - 1] == tokens[index - 1 + period]:
        index -= 1
    return max(index, 0)


class Periodicity:
    """`periodic_from` of a growing sequence, without reading again what was read for the token before."""

    def __init__(self) -> None:
        self._known = (0, 0, 0)

    def since(self, tokens: Sequence[int], period: int) -> int:
        """The first index from which `tokens` has this period."""
        length, known, first = self._known
        grown = length == len(tokens) - 1 and known == period and tokens[-1] == tokens[-1 - period]
        if not grown and (length, known) != (len(tokens), period):
            first = periodic_from(tokens, period)
        self._known = (len(tokens), period, first)
        return first
