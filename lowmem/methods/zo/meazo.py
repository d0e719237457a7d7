"""MEAZO: MeZO divided by one global second moment.

    rho = (L(x + eps z) - L(x - eps z)) / (2 eps)
    v  <- beta v + (1 - beta) rho^2,   v^ = v / (1 - beta^t)
    x  <- x - lr rho / sqrt(v^) z

Directions of zeroth-order methods are isotropic, so that Adam's per-weight second moments carry one number's worth of
information: this is that number. `lr` is the length of a typical step per weight, in the weights' units: scaling the
loss changes nothing (tested), scaling the weights asks for another rate. Two forwards a step, one scalar of state.

Source: arXiv 2605.03869, of which the abstract was read ("one scalar second moment matches ZO-Adam"): a
reconstruction. Ours clips |rho| / sqrt(v^) at `CLIP`, without which one outlier of a young average takes a step of any
length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lowmem.methods.zo.algorithm import Evaluate, Move, slope
from lowmem.methods.zo.mezo import DEFAULT_EPS
from lowmem.methods.zo.perturb import Direction

BETA = 0.99
CLIP = 3.0


@dataclass
class Meazo:
    eps: float = DEFAULT_EPS
    _moment: float = 0.0
    _count: int = 0

    @property
    def title(self) -> str:
        return "MEAZO (reconstruction)"

    def step(self, evaluate: Evaluate, *, lr: float, step: int) -> Move:
        z = Direction(step)
        loss, rho = slope(evaluate, z, self.eps)
        if not math.isfinite(rho):
            return Move(loss, (), 2, {"projected_grad": rho}, skipped=True)
        self._moment = BETA * self._moment + (1 - BETA) * rho**2
        self._count += 1
        typical = math.sqrt(self._moment / (1 - BETA**self._count))
        ratio = max(-CLIP, min(CLIP, rho / typical)) if typical > 0 else 0.0
        return Move(loss, ((z, lr * ratio),), 2, {"projected_grad": rho, "typical_slope": typical})

    def numbers(self) -> dict[str, float | int | None]:
        return {"moment": self._moment, "count": self._count}

    def load_numbers(self, numbers: dict[str, float | int | None]) -> None:
        self._moment, self._count = float(numbers["moment"] or 0.0), int(numbers["count"] or 0)
