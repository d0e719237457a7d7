"""The learning rate as a pure function of the step: nothing to save, nothing to fall out of step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """`rate(step)` for step = 0 … total - 1: warm-up from peak / (warmup + 1) to `peak`, then constant, or down to 0.

    The last step of linear and cosine has a positive rate: no step is spent on doing nothing.
    """

    kind: Literal["constant", "linear", "cosine"]
    peak: float
    total: int
    warmup: int = 0

    def rate(self, step: int) -> float:
        if step < self.warmup:
            return self.peak * (step + 1) / (self.warmup + 1)
        if self.kind == "constant":
            return self.peak
        done = (step - self.warmup) / max(1, self.total - self.warmup)
        return self.peak * (1 - done if self.kind == "linear" else (1 + math.cos(math.pi * done)) / 2)


def warmup_steps(*, steps: int, ratio: float, total: int) -> int:
    """`steps` when given, else `ratio` of `total`, rounded up."""
    return min(total, steps or math.ceil(ratio * total))
