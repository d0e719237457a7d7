"""Signum (Bernstein et al., arXiv 1802.04434): the sign of the gradient's moving average.

    m = b m + (1 - b) g        w = (1 - lr wd) w - lr sign(m)

State: 4 bytes per parameter (m in fp32), nothing with b = 0, which is SignSGD.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowmem.methods.rules.slabs import Slab, slabs


@dataclass(frozen=True)
class Signum:
    momentum: float = 0.9
    weight_decay: float = 0.0

    @property
    def title(self) -> str:
        return "Signum" if self.momentum else "SignSGD"

    def init(self, weight: Tensor) -> dict[str, Tensor]:
        return {"exp_avg": torch.zeros_like(weight, dtype=torch.float32)} if self.momentum else {}

    def update_(
        self, weight: Tensor, grad: Tensor, state: dict[str, Tensor], *, lr: float, t: int, rounding_key: int
    ) -> None:
        for slab in slabs(weight, grad, state):
            self._update_slab_(slab, lr=lr, rounding_key=rounding_key)

    def _update_slab_(self, slab: Slab, *, lr: float, rounding_key: int) -> None:
        mean = slab.grad.float()
        if self.momentum:
            mean = slab.state["exp_avg"].lerp_(mean, 1 - self.momentum)
        value = slab.weight.float() * (1 - lr * self.weight_decay)
        slab.assign_(value.sub_(mean.sign(), alpha=lr), rounding_key)
