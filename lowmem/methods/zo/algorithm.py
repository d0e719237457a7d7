"""What a zeroth-order algorithm is: from function values along seeded directions to a move along them.

An algorithm sees scalars only. It can therefore be tested on toy functions, and the same code runs on a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from lowmem.methods.zo.form import Form
from lowmem.methods.zo.perturb import Direction


@dataclass(frozen=True)
class Evaluation:
    """The loss of one effective batch at one point. All sums in fp64."""

    sums: tuple[float, ...]
    """Per example: sum of its token losses."""
    counts: tuple[float, ...]
    """Per example: how many terms are in the sum."""

    @property
    def mean(self) -> float:
        return math.fsum(self.sums) / math.fsum(self.counts)

    @property
    def finite(self) -> bool:
        return all(map(math.isfinite, self.sums))


Evaluate = Callable[[Direction | None, float], Evaluation]
"""`evaluate(direction, eps)`: the loss at `x + eps z(direction)` on the step's batch; `(None, 0.0)` is x itself."""


@dataclass(frozen=True)
class Scales:
    """What an algorithm knows of the problem before its first step, in the units of the weights."""

    rms: float
    """Root mean square of all trained weights at the start."""
    resolution: float
    """Smallest relative change that the weights' dtype can hold (machine epsilon)."""


@dataclass(frozen=True)
class Move:
    """The outcome of one step: `x <- x - sum coef z(direction)`, or what `form` makes of that sum. No terms when
    `skipped`. Terms may name directions of earlier steps: they are drawn again."""

    loss: float
    terms: tuple[tuple[Direction, float], ...]
    forwards: int
    details: dict[str, float] = field(default_factory=dict)
    skipped: bool = False
    form: Form | None = None


def slope(evaluate: Evaluate, direction: Direction, eps: float) -> tuple[float, float]:
    """(mean loss of two probes at +-`eps`, difference quotient between them)."""
    plus, minus = evaluate(direction, eps), evaluate(direction, -eps)
    return (plus.mean + minus.mean) / 2, (plus.mean - minus.mean) / (2 * eps)


class Algorithm(Protocol):
    """Decides moves from function values. All state is in `numbers`."""

    @property
    def title(self) -> str: ...

    def step(self, evaluate: Evaluate, *, lr: float, step: int) -> Move:
        """One move. `lr` is the learning rate, or a dimensionless schedule factor for parameter-free algorithms."""
        ...

    def numbers(self) -> dict[str, float | int | None]:
        """Everything needed to continue, JSON-ready."""
        ...

    def load_numbers(self, numbers: dict[str, float | int | None]) -> None: ...
