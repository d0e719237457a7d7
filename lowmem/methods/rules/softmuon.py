"""SoftMuon (arXiv 2605.31371): Muon whose singular values stop being equal towards the end of the run.

    m = b m + (1 - b) g        u = (1 - b) g + b m (nesterov) or m
    first updates:   w = (1 - lr wd) w - lr scale msign(u)
    the last ones:   w = (1 - lr wd) w - lr scale u (u^T u + I / tau^2)^(-1/2)        tau falls, see `annealing`

The soft direction has the singular vectors of u and singular values tau s / sqrt(1 + tau^2 s^2). The law of `annealing`
is fitted to the singular values of the first soft update's gradient. State: 4 bytes per parameter (m in fp32) and 8 per
tensor. For hidden matrices only. Needs to know how many updates the run has.

Differs from the authors' code: the inverse root is exact (an eigendecomposition) where the smaller side is at most
`EXACT`, and else takes 15 coupled Newton-Schulz iterations in fp32 where they take 5 in bf16, which do not converge;
the temperature is each tensor's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowmem.methods.rules.annealing import SATURATED, location_and_scale, soft_progress, temperature
from lowmem.methods.rules.muon import average_
from lowmem.methods.rules.orthogonal import Scale, msign, scale_of
from lowmem.methods.rules.slabs import descend_

SATURATION = (1 - SATURATED) / (1 - (1 - SATURATED) ** 2) ** 0.5
EXACT = 256
"""Largest smaller side of a matrix whose Gram matrix is decomposed (cheaper there than iterations are)."""
RESOLVED = 1e-6
"""Eigenvalues of a Gram matrix relative to the largest that fp32 tells from zero."""
ROOT_STEPS = 15
"""Each step multiplies the smallest eigenvalue by 9/4: enough for tau s = 70, where phi is saturated."""


@dataclass(frozen=True)
class SoftMuon:
    total_updates: int
    momentum: float = 0.95
    nesterov: bool = True
    hard_fraction: float = 0.9
    tau_max: float = 1e9
    scale: Scale = "rms"
    ns_steps: int = 5
    weight_decay: float = 0.0

    @property
    def title(self) -> str:
        return "SoftMuon"

    def init(self, weight: Tensor) -> dict[str, Tensor]:
        scalars = {name: torch.zeros((), dtype=torch.float32, device=weight.device) for name in ("location", "scale")}
        return {"exp_avg": torch.zeros_like(weight, dtype=torch.float32), **scalars}

    def update_(
        self, weight: Tensor, grad: Tensor, state: dict[str, Tensor], *, lr: float, t: int, rounding_key: int
    ) -> None:
        location, scale = state["location"], state["scale"]
        p = soft_progress(t, total=self.total_updates, hard_fraction=self.hard_fraction)
        if p == 0:
            for kept, found in zip((location, scale), location_and_scale(singular_values(grad)), strict=True):
                kept.copy_(found)
        u = average_(state["exp_avg"], grad, self.momentum, nesterov=self.nesterov)
        if p is None:
            direction = msign(u, self.ns_steps)
        else:
            direction = soft_msign(u, temperature(p, location, scale, saturation=SATURATION, tau_max=self.tau_max))
        step = lr * scale_of(weight, self.scale)
        descend_(weight, direction, step=step, lr=lr, weight_decay=self.weight_decay, rounding_key=rounding_key)


def singular_values(matrix: Tensor) -> Tensor:
    """fp32, from the Gram matrix of the smaller side: values below 3e-4 of the largest are not resolved."""
    gram, _ = _gram(matrix)
    values: Tensor = torch.linalg.eigvalsh(gram).clamp_min_(0).sqrt_()
    return values


def soft_msign(matrix: Tensor, tau: Tensor) -> Tensor:
    """`matrix` (matrix^T matrix + I / tau^2)^(-1/2), fp32."""
    gram, x = _gram(matrix)
    gram.diagonal().add_(tau.pow(-2))
    if gram.shape[0] <= EXACT:
        values, vectors = torch.linalg.eigh(gram)
        # Below this an eigenvalue is rounding noise, whose inverse would be as large as tau allows.
        root: Tensor = (vectors * values.clamp_min(RESOLVED * values.amax()).rsqrt()) @ vectors.T
    else:
        root = inverse_root(gram)
    result: Tensor = root @ x
    return result.T if matrix.shape[0] > matrix.shape[1] else result


def inverse_root(matrix: Tensor, steps: int = ROOT_STEPS) -> Tensor:
    """matrix^(-1/2) of a symmetric positive definite `matrix` by coupled Newton-Schulz iterations."""
    norm: Tensor = matrix.norm()
    identity = torch.eye(matrix.shape[0], dtype=matrix.dtype, device=matrix.device)
    y, z = matrix / norm, identity.clone()
    for _ in range(steps):
        t = torch.addmm(identity, z, y, beta=1.5, alpha=-0.5)
        y, z = y @ t, t @ z
    return z * norm.rsqrt()


def _gram(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """x x^T and x: `matrix` in fp32, lying on its longer side."""
    x = (matrix.T if matrix.shape[0] > matrix.shape[1] else matrix).float()
    return x @ x.T, x
