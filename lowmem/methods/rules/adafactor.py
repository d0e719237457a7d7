"""Adafactor (Shazeer and Stern, arXiv 1804.04235): Adam's second moment as the product of a column and a row.

    r = b r + (1 - b) rowmean(g*g)        c = b c + (1 - b) colmean(g*g)        b = 1 - t^decay
    u = g / sqrt(r c / mean(r))           w = (1 - lr wd) w - lr u / max(1, rms(u) / clip)

With `relative`, lr is multiplied by max(eps, rms(w)): steps relative to the size of the tensor, as published. State:
4 (m + n) bytes for an m x n matrix, next to nothing; 4 per parameter of vectors, which are not factored; no momentum.

In fp32 the same as `torch.optim.Adafactor` with `relative`, as long as lr is below its cap 1 / sqrt(t) (tested); there
the rate always falls at least that fast, here the schedule is the run's. The rms of the update is needed before any
entry moves, so slabs are passed over three times instead of keeping u.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lowmem.methods.rules.slabs import Slab, slabs

EPS_VARIANCE = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Adafactor:
    decay: float = -0.8
    clip: float = 1.0
    relative: bool = False
    eps: float = 1e-3
    weight_decay: float = 0.0

    @property
    def title(self) -> str:
        return "Adafactor"

    def init(self, weight: Tensor) -> dict[str, Tensor]:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=weight.device)

        if weight.dim() < 2:
            return {"exp_avg_sq": torch.zeros_like(weight, dtype=torch.float32)}
        return {"row_sq": zeros(weight.shape[0]), "col_sq": zeros(weight[0].numel())}

    def update_(
        self, weight: Tensor, grad: Tensor, state: dict[str, Tensor], *, lr: float, t: int, rounding_key: int
    ) -> None:
        rate = lr * max_rms(weight, self.eps) if self.relative else lr
        self._average_(weight, grad, state, 1 - t**self.decay)
        total = sum_of_squares(self._direction(slab, state) for slab in slabs(weight, grad, {}))
        factor = rate / (total.sqrt() / (math.sqrt(weight.numel()) * self.clip)).clamp_min(1.0)
        for slab in slabs(weight, grad, {}):
            step = self._direction(slab, state).mul_(factor)
            slab.assign_((slab.weight.float() * (1 - lr * self.weight_decay)).sub_(step), rounding_key)
            del step

    def _average_(self, weight: Tensor, grad: Tensor, state: dict[str, Tensor], beta: float) -> None:
        if weight.dim() < 2:
            state["exp_avg_sq"].lerp_(grad.float().square(), 1 - beta)
            return
        rows, columns = state["row_sq"], state["col_sq"]
        sums = torch.zeros_like(columns)
        for slab in slabs(weight, grad, {}):
            squares = slab.grad.float().reshape(slab.grad.shape[0], -1).square()
            part = rows[slab.first_row : slab.first_row + squares.shape[0]]
            part.lerp_(squares.mean(dim=1), 1 - beta)
            sums += squares.sum(dim=0)
            del squares
        columns.lerp_(sums / weight.shape[0], 1 - beta)

    def _direction(self, slab: Slab, state: dict[str, Tensor]) -> Tensor:
        """u of the entries in `slab`, fp32."""
        if slab.weight.dim() < 2:
            variance = state["exp_avg_sq"].clamp(min=EPS_VARIANCE**2)
            return slab.grad.float() * variance.rsqrt_()
        rows, columns = state["row_sq"], state["col_sq"]
        part = rows[slab.first_row : slab.first_row + slab.weight.shape[0]]
        variance = torch.outer(part / rows.mean().clamp_min(EPS_VARIANCE), columns)
        return variance.clamp_(min=EPS_VARIANCE**2).rsqrt_().reshape(slab.grad.shape).mul_(slab.grad)


def max_rms(weight: Tensor, floor: float) -> Tensor:
    """The root mean square of `weight`, at least `floor`; a scalar."""
    total = sum_of_squares(slab.weight.float() for slab in slabs(weight, weight, {}))
    return (total / weight.numel()).sqrt().clamp_min(floor)


def sum_of_squares(parts: Iterator[Tensor]) -> Tensor:
    """Over all entries of all fp32 `parts`, of which there is one at least; a scalar."""
    total: Tensor = torch.linalg.vector_norm(next(parts)).square()
    for part in parts:
        total += torch.linalg.vector_norm(part).square()
    return total
