"""StoSignSGD (Yu, Pan, Liu, Zhang, arXiv 2604.15416): a random sign whose mean is linear in the momentum.

    m = b m + (1 - b) g        A = max(rho A, |m|)        w = (1 - lr wd) w - lr s
    s = +1 with probability (1 + m / A) / 2, else -1; 0 where A = 0

so that E[s] = m / A. A reconstruction: the abstract is public, the update rule is known from a catalogue, no code or
hyper-parameters are. rho = 1 is the published running maximum, in which one early outlier counts for ever; rho < 1,
which forgets it and keeps the identity, is this project's own. Probabilities have a resolution of 2^-16.

State: 8 bytes per parameter (m and A in fp32). The noise is a function of the key of this update, drawn in tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowmem.kernels.noise import matrix_shape, rounding_bits, row_numbers, stream_key, tiles
from lowmem.methods.rules.slabs import Slab, slabs


@dataclass(frozen=True)
class StoSign:
    momentum: float = 0.9
    envelope_decay: float = 1.0
    weight_decay: float = 0.0

    @property
    def title(self) -> str:
        return "StoSignSGD"

    def init(self, weight: Tensor) -> dict[str, Tensor]:
        return {name: torch.zeros_like(weight, dtype=torch.float32) for name in ("exp_avg", "envelope")}

    def update_(
        self, weight: Tensor, grad: Tensor, state: dict[str, Tensor], *, lr: float, t: int, rounding_key: int
    ) -> None:
        for slab in slabs(weight, grad, state):
            self._update_slab_(slab, lr=lr, rounding_key=rounding_key)

    def _update_slab_(self, slab: Slab, *, lr: float, rounding_key: int) -> None:
        m = slab.state["exp_avg"].lerp_(slab.grad.float(), 1 - self.momentum)
        envelope = slab.state["envelope"].mul_(self.envelope_decay)
        torch.maximum(envelope, m.abs(), out=envelope)
        # A key of its own: the rounding below draws from `rounding_key`, and the two must be independent.
        key = stream_key(rounding_key, 0, 0, "", "stosign")
        signs = random_sign(m, envelope, key, first_row=slab.first_row)
        value = slab.weight.float() * (1 - lr * self.weight_decay)
        slab.assign_(value.sub_(signs, alpha=lr), rounding_key)


def random_sign(mean: Tensor, envelope: Tensor, key: int, *, first_row: int = 0) -> Tensor:
    """Entries -1 and +1 (0 where `envelope` is 0) with expectation mean / envelope. Needs |mean| <= envelope, fp32.

    `first_row`: where `mean` starts in the tensor that `key` belongs to.
    """
    shape = matrix_shape(mean.shape)
    out = torch.empty(shape, dtype=torch.float32, device=mean.device)
    rows, _ = row_numbers(mean.shape, None, mean.device)
    rows = rows + first_row
    m, a = mean.reshape(shape), envelope.reshape(shape)
    for row, col in tiles(*shape, like=out):
        bits = rounding_bits(rows[row], col.start, out[row, col].shape[1], key)
        noise = (bits.float() + 0.5) / 2**15 - 1  # uniform on (-1, 1)
        out[row, col] = (m[row, col] + a[row, col] * noise).sign_()
    return out.reshape(mean.shape)
