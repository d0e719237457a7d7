"""Gradient descent with optional heavy-ball momentum.

    m = mu m + g        w = (1 - lr wd) w - lr m

State: nothing, or 4 bytes per parameter with momentum (m in fp32).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowmem.methods.rules.slabs import Slab, slabs


@dataclass(frozen=True)
class Sgd:
    momentum: float = 0.0
    weight_decay: float = 0.0

    @property
    def title(self) -> str:
        return "SGD with momentum" if self.momentum else "SGD"

    def init(self, weight: Tensor) -> dict[str, Tensor]:
        return {"momentum": torch.zeros_like(weight, dtype=torch.float32)} if self.momentum else {}

    def update_(
        self, weight: Tensor, grad: Tensor, state: dict[str, Tensor], *, lr: float, t: int, rounding_key: int
    ) -> None:
        for slab in slabs(weight, grad, state):
            self._update_slab_(slab, lr=lr, rounding_key=rounding_key)

    def _update_slab_(self, slab: Slab, *, lr: float, rounding_key: int) -> None:
        step = slab.grad.float()
        if self.momentum:
            step = slab.state["momentum"].mul_(self.momentum).add_(step)
        value = slab.weight.float() * (1 - lr * self.weight_decay)
        slab.assign_(value.sub_(step, alpha=lr), rounding_key)
