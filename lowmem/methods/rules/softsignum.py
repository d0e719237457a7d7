"""SoftSignum (arXiv 2605.31371): Signum whose sign becomes a tanh towards the end of the run.

    m = b m + (1 - b) g
    first updates:   w = (1 - lr wd) w - lr sign(m)
    the last ones:   w = (1 - lr wd) w - lr tanh(tau m)        tau falls, see `annealing`

so that small averages, which a sign makes as large as all others, end as steps of plain descent. State: 4 bytes per
parameter (m in fp32) and 8 per tensor. Needs to know how many updates the run has.

Differs from the authors' code: the average is weighted by 1 - b as in our Signum (theirs can be), there is no Nesterov
form, and the temperature is each tensor's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lowmem.methods.rules.annealing import SATURATED, location_and_scale, soft_progress, temperature
from lowmem.methods.rules.slabs import Slab, slabs

SATURATION = math.atanh(1 - SATURATED)


@dataclass(frozen=True)
class SoftSignum:
    total_updates: int
    momentum: float = 0.9
    hard_fraction: float = 0.9
    tau_max: float = 20.0
    weight_decay: float = 0.0

    @property
    def title(self) -> str:
        return "SoftSignum"

    def init(self, weight: Tensor) -> dict[str, Tensor]:
        scalars = {name: torch.zeros((), dtype=torch.float32, device=weight.device) for name in ("location", "scale")}
        return {"exp_avg": torch.zeros_like(weight, dtype=torch.float32), **scalars}

    def update_(
        self, weight: Tensor, grad: Tensor, state: dict[str, Tensor], *, lr: float, t: int, rounding_key: int
    ) -> None:
        m, location, scale = state["exp_avg"], state["location"], state["scale"]
        for slab in slabs(weight, grad, {"exp_avg": m}):
            slab.state["exp_avg"].lerp_(slab.grad.float(), 1 - self.momentum)
        p = soft_progress(t, total=self.total_updates, hard_fraction=self.hard_fraction)
        if p == 0:
            for kept, found in zip((location, scale), location_and_scale(m), strict=True):
                kept.copy_(found)
        tau = None if p is None else temperature(p, location, scale, saturation=SATURATION, tau_max=self.tau_max)
        for slab in slabs(weight, m, {}):
            self._move_(slab, tau, lr=lr, rounding_key=rounding_key)

    def _move_(self, slab: Slab, tau: Tensor | None, *, lr: float, rounding_key: int) -> None:
        direction = slab.grad.sign() if tau is None else (slab.grad * tau).tanh_()
        value = slab.weight.float() * (1 - lr * self.weight_decay)
        slab.assign_(value.sub_(direction, alpha=lr), rounding_key)
