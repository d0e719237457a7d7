"""AdamW (Loshchilov and Hutter, arXiv 1711.05101): Adam with decoupled weight decay.

    m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g*g
    w = (1 - lr wd) w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

State: 8 bytes per parameter (m and v in fp32). Same as `torch.optim.AdamW` in fp32 (tested); bf16 weights are updated
by stochastic rounding instead of keeping a master copy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lowmem.methods.rules.slabs import Slab, slabs


@dataclass(frozen=True)
class AdamW:
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    @property
    def title(self) -> str:
        return "AdamW"

    def init(self, weight: Tensor) -> dict[str, Tensor]:
        return {name: torch.zeros_like(weight, dtype=torch.float32) for name in ("exp_avg", "exp_avg_sq")}

    def update_(
        self, weight: Tensor, grad: Tensor, state: dict[str, Tensor], *, lr: float, t: int, rounding_key: int
    ) -> None:
        for slab in slabs(weight, grad, state):
            self._update_slab_(slab, lr=lr, t=t, rounding_key=rounding_key)

    def _update_slab_(self, slab: Slab, *, lr: float, t: int, rounding_key: int) -> None:
        beta1, beta2 = self.betas
        g = slab.grad.float()
        m = slab.state["exp_avg"].mul_(beta1).add_(g, alpha=1 - beta1)
        v = slab.state["exp_avg_sq"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        denominator = v.sqrt().div_(math.sqrt(1 - beta2**t)).add_(self.eps)
        keep, rate = 1 - lr * self.weight_decay, lr / (1 - beta1**t)
        if slab.weight.dtype == torch.float32:  # in place: the same bits, two passes over memory less
            kept = slab.weight if keep == 1.0 else slab.weight.mul_(keep)
            kept.addcdiv_(m, denominator, value=-rate)
            return
        value = slab.weight.float() * keep
        slab.assign_(value.addcdiv_(m, denominator, value=-rate), rounding_key)
