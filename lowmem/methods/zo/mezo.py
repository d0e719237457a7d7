"""MeZO (Malladi et al., arXiv 2305.17333; paper and code were read): two-sided SPSA with a tuned learning rate.

    rho = (L(x + eps z) - L(x - eps z)) / (2 eps)          x <- x - lr rho z

Two forwards a step, no state. Differences from the paper: the perturbation is never written into the weights, z may
be Rademacher (+-1) besides Gaussian, and the logged loss is the mean of both probes instead of L(x + eps z).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lowmem.methods.zo.algorithm import Evaluate, Move, slope
from lowmem.methods.zo.perturb import Direction

DEFAULT_EPS = 1e-3


@dataclass
class Mezo:
    eps: float = DEFAULT_EPS

    @property
    def title(self) -> str:
        return "MeZO"

    def step(self, evaluate: Evaluate, *, lr: float, step: int) -> Move:
        z = Direction(step)
        loss, rho = slope(evaluate, z, self.eps)
        if not math.isfinite(rho):
            return Move(loss, (), 2, {"projected_grad": rho}, skipped=True)
        return Move(loss, ((z, lr * rho),), 2, {"projected_grad": rho})

    def numbers(self) -> dict[str, float | int | None]:
        return {}

    def load_numbers(self, numbers: dict[str, float | int | None]) -> None:
        pass
