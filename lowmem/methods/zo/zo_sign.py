"""ZO-Sign with replayed momentum: every weight moves by the same length, in the sign of an averaged estimate.

    rho = (L(x + eps z) - L(x - eps z)) / (2 eps)        G = average of the last rho_i z_i (`history.py`)
    x  <- x - lr sign(G)

`lr` is the step of each weight. Scaling the loss changes nothing (tested). Two forwards a step, 0 bytes a weight, H
noise passes an update.

Sources: JAGUAR SignSGD (arXiv 2506.04430, paper and code were read). There central differences touch a random block of
coordinates and a stored momentum changes on that block only; here every z touches all weights, and the momentum is
drawn again instead of stored, so that memory stays that of inference. It averages H estimates where the original's
average is endless: a reconstruction of the idea, not of the method.
"""

from __future__ import annotations

import math

from lowmem.methods.zo.algorithm import Evaluate, Move, slope
from lowmem.methods.zo.form import Form
from lowmem.methods.zo.history import History
from lowmem.methods.zo.perturb import Direction


class ZoSign:
    def __init__(self, eps: float, history: History) -> None:
        self._eps, self._history = eps, history

    @property
    def title(self) -> str:
        return "ZO-Sign with replayed momentum"

    def step(self, evaluate: Evaluate, *, lr: float, step: int) -> Move:
        z = Direction(step)
        loss, rho = slope(evaluate, z, self._eps)
        if not math.isfinite(rho):
            return Move(loss, (), 2, {"projected_grad": rho}, skipped=True)
        self._history.add(step, [(z, rho)])
        return Move(loss, self._history.terms(step), 2, {"projected_grad": rho}, form=Form("sign", lr))

    def numbers(self) -> dict[str, float | int | None]:
        return self._history.numbers()

    def load_numbers(self, numbers: dict[str, float | int | None]) -> None:
        self._history.load_numbers(numbers)
