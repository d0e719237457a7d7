"""Lion (Chen et al., arXiv 2302.06675): the sign of an interpolation between momentum and gradient.

    w = (1 - lr wd) w - lr sign(b1 m + (1 - b1) g)        m = b2 m + (1 - b2) g

State: 4 bytes per parameter (m in fp32). Every entry moves by lr, so rates are 3 to 10 times smaller than AdamW's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowmem.methods.rules.slabs import Slab, slabs


@dataclass(frozen=True)
class Lion:
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0

    @property
    def title(self) -> str:
        return "Lion"

    def init(self, weight: Tensor) -> dict[str, Tensor]:
        return {"exp_avg": torch.zeros_like(weight, dtype=torch.float32)}

    def update_(
        self, weight: Tensor, grad: Tensor, state: dict[str, Tensor], *, lr: float, t: int, rounding_key: int
    ) -> None:
        for slab in slabs(weight, grad, state):
            self._update_slab_(slab, lr=lr, rounding_key=rounding_key)

    def _update_slab_(self, slab: Slab, *, lr: float, rounding_key: int) -> None:
        beta1, beta2 = self.betas
        g, m = slab.grad.float(), slab.state["exp_avg"]
        direction = m.lerp(g, 1 - beta1).sign_()
        m.lerp_(g, 1 - beta2)
        value = slab.weight.float() * (1 - lr * self.weight_decay)
        slab.assign_(value.sub_(direction, alpha=lr), rounding_key)
