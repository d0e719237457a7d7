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

from lowmem.methods.rules.base import assign_
from lowmem.methods.rules.orthogonal import Scale, msign, scale_of


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
        g = grad.float()
        m = state["exp_avg"].lerp_(g, 1 - self.momentum)
        direction = msign(g.lerp(m, self.momentum) if self.nesterov else m, self.ns_steps)
        value = weight.float() * (1 - lr * self.weight_decay)
        assign_(weight, value.sub_(direction, alpha=lr * scale_of(weight, self.scale)), rounding_key)
