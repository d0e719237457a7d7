"""LoRA-Muon: steepest descent in the spectral norm of the change of B A, one factor at a time (arXiv 2606.12921).

A step of A changes the weight by s B dA. Among all dA with |s B dA| <= lr in the spectral norm, the one that lowers the
loss most is found by whitening with the Gram matrix of the other factor:

    A <- A - (lr / s) (B'B)^-1/2 msign( (B'B)^-1/2 M_A )        B <- B - (lr / s) msign( M_B (AA')^-1/2 ) (AA')^-1/2

M_A, M_B are moving averages of the factors' gradients. Both steps are taken from the old factors. The spectral norm of
the change does not depend on the rank, nor does a learning rate. `scale` stretches lr by the layer's shape.

State, fp32: 4 r (m + n) per adapter, half of AdamW's. A reconstruction: we had a one-line summary of the paper
("spectral steepest descent on the fixed-rank manifold, Gram-whitened msign per factor") and neither text nor code; the
damping of the Gram matrices, the momentum and the Newton-Schulz iteration in place of an exact msign are our choices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowmem.methods.lowrank.observe import Observation
from lowmem.methods.lowrank.pair import Pair
from lowmem.methods.lowrank.pair_rule import PairGradient
from lowmem.methods.rules.orthogonal import Scale, msign, scale_of

SMALLEST = 1e-20
"""Absolute damping where a Gram matrix is zero, as B's is at the start: its gradient is zero too."""


@dataclass(frozen=True)
class LoraMuon:
    momentum: float = 0.9
    damping: float = 1e-3
    scale: Scale = "rms"
    ns_steps: int = 5

    @property
    def title(self) -> str:
        return "LoRA-Muon (reconstruction)"

    @property
    def observes(self) -> Observation:
        return "nothing"

    def init(self, pair: Pair) -> dict[str, Tensor]:
        return {
            "momentum_inn": torch.zeros_like(pair.a, dtype=torch.float32),
            "momentum_out": torch.zeros_like(pair.b, dtype=torch.float32),
        }

    def update_(
        self, pair: Pair, gradient: PairGradient, state: dict[str, Tensor], *, lr: float, peak: float, t: int
    ) -> None:
        inn, out = state["momentum_inn"], state["momentum_out"]
        inn.lerp_(gradient.a * gradient.clip, 1 - self.momentum)
        out.lerp_(gradient.b * gradient.clip, 1 - self.momentum)
        by_b = inverse_root(pair.b.T @ pair.b, self.damping)
        by_a = inverse_root(pair.a @ pair.a.T, self.damping)
        size = lr / pair.scale * self._stretch(pair)
        pair.a.sub_(by_b @ msign(by_b @ inn, self.ns_steps), alpha=size)
        pair.b.sub_(msign(out @ by_a, self.ns_steps) @ by_a, alpha=size)

    def _stretch(self, pair: Pair) -> float:
        """`scale_of` the layer's weight, whose shape (m, n) an empty tensor stands for."""
        return scale_of(torch.empty(pair.b.shape[0], pair.a.shape[1], device="meta"), self.scale)


def inverse_root(gram: Tensor, damping: float) -> Tensor:
    """(gram + damping mean(eigenvalues) I)^-1/2 of a symmetric positive (R, R) matrix, computed in fp64."""
    values, vectors = torch.linalg.eigh(gram.double())
    values = values.clamp_min(0) + damping * values.mean().clamp_min(0) + SMALLEST
    root: Tensor = (vectors * values.rsqrt()) @ vectors.T
    return root.to(gram.dtype)
