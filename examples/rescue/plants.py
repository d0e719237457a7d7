"""Texts that loop, made from texts that do not: a beginning, and then a block of another text again and again.

| kind | the block |
|---|---|
| exact | 1 to 1500 tokens, the same in every turn |
| counting | sentences with a number in one or two places that moves by a fixed step each turn |
| changing | the same sentences in another order each turn, one of them left out |

A planted loop goes on for `TURNS` turns and at least `LEAST` tokens, as a model that is stuck would; noticing it later
than that is not noticing it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Encode = Callable[[str], list[int]]

TURNS = 8
LEAST = 512
PERIODS = (1, 2, 3, 5, 8, 13, 16, 21, 34, 55, 89, 144, 233, 334, 377, 610, 987, 1500)
LEADS = (
    "Wait, let me check step {n} again.",
    "Attempt {n}:",
    "In case {n}, we have",
    "So for n = {n} the same holds.",
    "Let me try {n} instead.",
    "Hmm, check number {n}.",
)


@dataclass(frozen=True)
class Plant:
    """`tokens` loop from `onset` on; `size` is the period, or the mean length of a turn."""

    kind: str
    tokens: list[int]
    onset: int
    size: int


def exact(draw: random.Random, prose: Sequence[Sequence[int]]) -> Plant:
    """A beginning of one text, then a block out of another."""
    period = draw.choice(PERIODS)
    start = _beginning(draw, prose)
    source: list[int] = []
    while len(source) < period:
        source += draw.choice(prose)
    at = draw.randrange(len(source) - period + 1)
    block = source[at : at + period]
    while len(start) and start[-1] == block[-1]:  # the loop would begin earlier than planted
        start.pop()
    return Plant("exact", start + block * turns(period), len(start), period)


def counting(draw: random.Random, prose: Sequence[Sequence[int]], texts: Sequence[str], encode: Encode) -> Plant:
    """Sentences of a text after a lead with a number; the number moves."""
    spoken = " ".join(_sentences(draw, texts, draw.randint(1, 4)))
    lead, step, value = draw.choice(LEADS), draw.choice((1, 1, 1, 2, -1, 5)), draw.randint(6, 60)
    frame = f"{lead} {spoken} Back to {{n}}." if draw.random() < 0.3 else f"{lead} {spoken}"
    return _spoken("counting", draw, prose, lambda turn: frame.replace("{n}", str(value + step * turn)), encode)


def changing(draw: random.Random, prose: Sequence[Sequence[int]], texts: Sequence[str], encode: Encode) -> Plant:
    """Four to eight sentences, shuffled in each turn, one of them left out."""
    sentences = _sentences(draw, texts, draw.randint(4, 8))
    return _spoken("changing", draw, prose, lambda turn: " ".join(draw.sample(sentences, len(sentences) - 1)), encode)


def turns(size: int) -> int:
    """How often a turn of `size` tokens comes."""
    return max(TURNS, -(-LEAST // size))


def _spoken(
    kind: str, draw: random.Random, prose: Sequence[Sequence[int]], turn: Callable[[int], str], encode: Encode
) -> Plant:
    size = max(1, len(encode(turn(0))))
    start = _beginning(draw, prose)
    loop = encode(" " + " ".join(turn(number) for number in range(turns(size))))
    return Plant(kind, start + loop, len(start), size)


def _beginning(draw: random.Random, prose: Sequence[Sequence[int]]) -> list[int]:
    start = list(draw.choice(prose))
    return start[: draw.randint(min(40, len(start)), len(start))]


def _sentences(draw: random.Random, texts: Sequence[str], count: int) -> list[str]:
    """Sentences in a row without figures of their own."""
    while True:
        found = [s.strip() for s in re.split(r"(?<=[.!?])\s+", draw.choice(texts)) if 15 <= len(s) <= 240]
        found = [s for s in found if not re.search(r"\d", s)]
        if len(found) >= count:
            at = draw.randrange(len(found) - count + 1)
            return found[at : at + count]
