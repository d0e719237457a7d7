"""AdamW with both moments in 8 bits (Dettmers et al., arXiv 2110.02861): same update, a quarter of the state.

    m, v read from codes; m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g*g; the step is taken; m, v back to codes

State: 2 bytes per parameter and 8 per block of 256 (`blocks`), 2.03 in all; tensors below `SMALL` entries keep fp32 and
8. The step itself uses the moments before they are rounded.

bitsandbytes' AdamW8bit has the same levels and blocks, and is the oracle of the tests. It is not called, for three
reasons: its kernels cannot be planned on fake tensors; they round bf16 weights to nearest, which loses small updates,
where ours round stochastically; and they round small second moments to zero, so that the next step of that weight is up
to 1 / sqrt(1 - b2) = 32 times too long. Here a positive second moment never becomes zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lowmem.kernels.noise import matrix_shape
from lowmem.methods.rules.adamw import AdamW
from lowmem.methods.rules.base import assign_
from lowmem.methods.rules.blocks import BLOCK, SIGNED, UNSIGNED, Codec
from lowmem.methods.rules.slabs import row_ranges

SMALL = 4096
"""Tensors with fewer entries keep fp32 state, as in bitsandbytes: norms are sensitive and cost nothing."""


@dataclass(frozen=True)
class AdamW8bit:
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    @property
    def title(self) -> str:
        return "AdamW 8-bit"

    def init(self, weight: Tensor) -> dict[str, Tensor]:
        if weight.numel() < SMALL:
            return self._wide.init(weight)
        codes = {
            n: torch.zeros(weight.numel(), dtype=torch.uint8, device=weight.device) for n in ("m_codes", "v_codes")
        }
        blocks = -(-weight.numel() // BLOCK)
        return codes | {n: torch.zeros(blocks, dtype=torch.float32, device=weight.device) for n in ("m_max", "v_max")}

    def update_(
        self, weight: Tensor, grad: Tensor, state: dict[str, Tensor], *, lr: float, t: int, rounding_key: int
    ) -> None:
        if weight.numel() < SMALL:
            self._wide.update_(weight, grad, state, lr=lr, t=t, rounding_key=rounding_key)
            return
        signed, unsigned = Codec(SIGNED, weight.device), Codec(UNSIGNED, weight.device)
        columns = matrix_shape(weight.shape)[1]
        for rows, first in row_ranges(weight, multiple=BLOCK // math.gcd(columns, BLOCK)):
            part, start = weight[rows], first * columns
            here = slice(start, start + part.numel())
            blocks = slice(start // BLOCK, -(-here.stop // BLOCK))
            m = state["m_codes"][here], state["m_max"][blocks]
            v = state["v_codes"][here], state["v_max"][blocks]
            step = self._step_(grad[rows].reshape(-1).float(), m, v, signed, unsigned, t)
            value = part.float() * (1 - lr * self.weight_decay)
            assign_(part, value.sub_(step.view(part.shape), alpha=lr), rounding_key, first_row=first)
            del step, value

    def _step_(
        self,
        g: Tensor,
        m: tuple[Tensor, Tensor],
        v: tuple[Tensor, Tensor],
        signed: Codec,
        unsigned: Codec,
        t: int,
    ) -> Tensor:
        """Adam's direction (n,); `m` and `v`, pairs of codes and scales, take the new moments."""
        beta1, beta2 = self.betas
        variance = unsigned.decode(*v).mul_(beta2).addcmul_(g, g, value=1 - beta2)
        step = variance.sqrt().div_(math.sqrt(1 - beta2**t)).add_(self.eps)
        unsigned.encode_(variance, *v, keep_positive=True)
        del variance
        mean = signed.decode(*m).mul_(beta1).add_(g, alpha=1 - beta1)
        torch.div(mean, step, out=step).div_(1 - beta1**t)
        signed.encode_(mean, *m)
        return step

    @property
    def _wide(self) -> AdamW:
        return AdamW(self.betas, self.eps, self.weight_decay)
