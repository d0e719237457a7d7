"""LOZO with momentum: MeZO along low-rank directions, whose slopes are averaged over steps.

    z   = U V^T / sqrt(r) per matrix, U (m, r) and V (n, r) Gaussian
    rho = (L(x + eps z) - L(x - eps z)) / (2 eps)
    G   = average of the last rho_i z_i (`history.py`)                x <- x - lr G

Gradients of finetuned language models are close to low rank, so that a low-rank direction loses little and has fewer
degrees of freedom to waste forwards on. Two forwards a step, 0 bytes a weight, H low-rank passes an update. `lr` is as
for MeZO (z has unit variance per weight).

Source: LOZO and LOZO-M (arXiv 2410.07698), of which the abstract and summaries were read: a reconstruction. There V is
kept for some dozens of steps, which makes the momentum a stored (m, r) matrix; here V is fresh in every step and the
momentum is drawn again from its seeds: no state, a shorter memory, and more noise passes per update.
"""

from __future__ import annotations

import math

from lowmem.methods.zo.algorithm import Evaluate, Move, slope
from lowmem.methods.zo.history import History
from lowmem.methods.zo.perturb import Direction

DEFAULT_RANK = 4


class Lozo:
    def __init__(self, eps: float, history: History) -> None:
        self._eps, self._history = eps, history

    @property
    def title(self) -> str:
        return "LOZO with replayed momentum (reconstruction)"

    def step(self, evaluate: Evaluate, *, lr: float, step: int) -> Move:
        z = Direction(step)
        loss, rho = slope(evaluate, z, self._eps)
        if not math.isfinite(rho):
            return Move(loss, (), 2, {"projected_grad": rho}, skipped=True)
        self._history.add(step, [(z, rho)])
        terms = tuple((direction, lr * coef) for direction, coef in self._history.terms(step))
        return Move(loss, terms, 2, {"projected_grad": rho})

    def numbers(self) -> dict[str, float | int | None]:
        return self._history.numbers()

    def load_numbers(self, numbers: dict[str, float | int | None]) -> None:
        self._history.load_numbers(numbers)
