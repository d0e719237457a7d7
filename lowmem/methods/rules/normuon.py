"""NorMuon (arXiv 2510.05491): Muon whose rows, one per output neuron, are also brought to the same length over time.

    m = b1 m + (1 - b1) g        u = (1 - b1) g + b1 m (nesterov) or m        o = msign(u)
    v_i = b2 v_i + (1 - b2) mean_j o_ij^2        d_ij = o_ij / (sqrt(v_i) + eps)
    w = (1 - lr wd) w - lr scale d |o| / |d|        Frobenius norms

An orthogonal direction may still move some neurons many times as far as others; dividing by the running size of each
row evens that out, and the norms make the whole step as long as Muon's. There is no bias correction since it cancels.
State: 4 bytes per parameter (m in fp32) and 4 per row. For hidden matrices only.

A reconstruction: written from what is remembered of the paper; neither its text nor its code was at hand. Which axis is
a neuron, b2 = 0.95 and the rescaling to Muon's norm are what we are sure of; eps and Nesterov are Muon's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowmem.methods.rules.muon import average_
from lowmem.methods.rules.orthogonal import NORM_FLOOR, Scale, msign, scale_of
from lowmem.methods.rules.slabs import descend_


@dataclass(frozen=True)
class NorMuon:
    betas: tuple[float, float] = (0.95, 0.95)
    eps: float = 1e-8
    nesterov: bool = True
    scale: Scale = "rms"
    ns_steps: int = 5
    weight_decay: float = 0.0

    @property
    def title(self) -> str:
        return "NorMuon"

    def init(self, weight: Tensor) -> dict[str, Tensor]:
        sizes = torch.zeros(weight.shape[0], dtype=torch.float32, device=weight.device)
        return {"exp_avg": torch.zeros_like(weight, dtype=torch.float32), "row_sq": sizes}

    def update_(
        self, weight: Tensor, grad: Tensor, state: dict[str, Tensor], *, lr: float, t: int, rounding_key: int
    ) -> None:
        beta1, beta2 = self.betas
        direction = msign(average_(state["exp_avg"], grad, beta1, nesterov=self.nesterov), self.ns_steps)
        lengths = direction.norm(dim=1)
        v = state["row_sq"].lerp_(lengths.square() / weight.shape[1], 1 - beta2)
        factors = 1 / (v.sqrt() + self.eps)
        factors *= lengths.norm() / ((lengths * factors).norm() + NORM_FLOOR)
        direction.mul_(factors[:, None])
        step = lr * scale_of(weight, self.scale)
        descend_(weight, direction, step=step, lr=lr, weight_decay=self.weight_decay, rounding_key=rounding_key)
