"""FZOO: several one-sided probes of one batch, divided by the spread of their losses.

    f_i = L(x + eps z_i), i = 1..N, z_i Rademacher        f_0 = L(x)
    s   = standard deviation of f_1 .. f_N
    x  <- x - lr sum_i (f_i - f_0) / (N s) z_i

s is about eps times the gradient's norm, so a step has the same length wherever the gradient is large or small, and
scaling the loss changes nothing (tested). N + 1 forwards a step, no state. `lr / sqrt(N)` is the length of a typical
step per weight.

Source: arXiv 2506.09034, of which the abstract and third-party summaries were read: a reconstruction. The paper's
batched forward (N perturbed copies at once) is a matter of speed and not done here; memory stays that of one.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from lowmem.methods.zo.algorithm import Evaluate, Move
from lowmem.methods.zo.mezo import DEFAULT_EPS
from lowmem.methods.zo.perturb import Direction

DEFAULT_PROBES = 8


@dataclass
class Fzoo:
    eps: float = DEFAULT_EPS
    probes: int = DEFAULT_PROBES
    """N, at least 2."""

    @property
    def title(self) -> str:
        return f"FZOO (reconstruction), {self.probes} probes"

    def step(self, evaluate: Evaluate, *, lr: float, step: int) -> Move:
        directions = [Direction(step, i) for i in range(self.probes)]
        here = evaluate(None, 0.0).mean
        losses = [evaluate(z, self.eps).mean for z in directions]
        forwards = self.probes + 1
        if not all(map(math.isfinite, (here, *losses))):
            return Move(here, (), forwards, skipped=True)
        spread = statistics.stdev(losses)
        if spread == 0.0:  # the weights' dtype cannot hold so small a perturbation, or the loss is flat
            return Move(here, (), forwards, {"spread": spread}, skipped=True)
        scale = lr / (self.probes * spread)
        terms = tuple((z, scale * (f - here)) for z, f in zip(directions, losses, strict=True))
        return Move(here, terms, forwards, {"spread": spread, "projected_grad": (losses[0] - here) / self.eps})

    def numbers(self) -> dict[str, float | int | None]:
        return {}

    def load_numbers(self, numbers: dict[str, float | int | None]) -> None:
        pass
