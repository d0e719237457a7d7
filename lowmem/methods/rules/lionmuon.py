"""LionMuon (arXiv 2605.19811): a Muon step every `period` updates, Lion's cheap sign steps between, one momentum.

    u = b1 m + (1 - b1) g        m = b2 m + (1 - b2) g
    updates 1, 1 + P, ...:  w = (1 - lr wd) w - lr scale msign(u)
    the others:             w = (1 - lr' wd) w - lr' sign(u)        with lr' = sign_lr_ratio lr

b1 = b2 is the authors' SignMuon. P = 1 is Muon with two betas, no period is Lion at rate lr'. The first update is
spectral, so that one step shows the memory that all of them need. The ratio 1/20 is a reconstruction for
finetuning, from the authors' tuned pretraining rates.

State: 4 bytes per parameter (m in fp32), half of AdamW's. For hidden matrices only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowmem.methods.rules.orthogonal import Scale, msign, scale_of
from lowmem.methods.rules.slabs import descend_


@dataclass(frozen=True)
class LionMuon:
    betas: tuple[float, float] = (0.9, 0.99)
    period: int | None = 2
    sign_lr_ratio: float = 0.05
    scale: Scale = "rms"
    ns_steps: int = 5
    weight_decay: float = 0.0

    @property
    def title(self) -> str:
        return "SignMuon" if self.betas[0] == self.betas[1] else "LionMuon"

    def init(self, weight: Tensor) -> dict[str, Tensor]:
        return {"exp_avg": torch.zeros_like(weight, dtype=torch.float32)}

    def update_(
        self, weight: Tensor, grad: Tensor, state: dict[str, Tensor], *, lr: float, t: int, rounding_key: int
    ) -> None:
        beta1, beta2 = self.betas
        g, m = grad.float(), state["exp_avg"]
        direction = m.lerp(g, 1 - beta1)
        m.lerp_(g, 1 - beta2)
        if self.period is not None and (t - 1) % self.period == 0:
            rate, stretch, direction = lr, scale_of(weight, self.scale), msign(direction, self.ns_steps)
        else:
            rate, stretch, direction = lr * self.sign_lr_ratio, 1.0, direction.sign_()
        step = rate * stretch
        descend_(weight, direction, step=step, lr=rate, weight_decay=self.weight_decay, rounding_key=rounding_key)
