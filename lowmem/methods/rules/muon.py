"""Muon (K. Jordan et al., 2024): momentum whose singular values are all made equal. For hidden matrices only.

    m = b m + (1 - b) g        u = (1 - b) g + b m (nesterov) or m
    w = (1 - lr wd) w - lr scale msign(u)

State: 4 bytes per parameter (m in fp32), half of AdamW's. Same as `torch.optim.Muon` up to its Newton-Schulz in bf16
(tested). `scale` is explained in `orthogonal.scale_of`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowmem.methods.rules.orthogonal import Scale, msign, scale_of
from lowmem.methods.rules.slabs import descend_


@dataclass(frozen=True)
class Muon:
    momentum: float = 0.95
    nesterov: bool = True
    scale: Scale = "rms"
    ns_steps: int = 5
    weight_decay: float = 0.0

    @property
    def title(self) -> str:
        return "Muon"

    def init(self, weight: Tensor) -> dict[str, Tensor]:
        return {"exp_avg": torch.zeros_like(weight, dtype=torch.float32)}

    def update_(
        self, weight: Tensor, grad: Tensor, state: dict[str, Tensor], *, lr: float, t: int, rounding_key: int
    ) -> None:
        direction = msign(average_(state["exp_avg"], grad, self.momentum, nesterov=self.nesterov), self.ns_steps)
        step = lr * scale_of(weight, self.scale)
        descend_(weight, direction, step=step, lr=lr, weight_decay=self.weight_decay, rounding_key=rounding_key)


def average_(exp_avg: Tensor, grad: Tensor, momentum: float, *, nesterov: bool) -> Tensor:
    """`exp_avg` moves towards `grad`; returns what is then made spectral, one step ahead with `nesterov`."""
    g = grad.float()
    exp_avg.lerp_(g, 1 - momentum)
    return g.lerp(exp_avg, momentum) if nesterov else exp_avg
