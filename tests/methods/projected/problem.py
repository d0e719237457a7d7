"""Matrices with gradients of one's own making, driven as the layer-wise step drives them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lowmem.kernels.noise import stream_key
from lowmem.methods.projected.draw import Draw
from lowmem.methods.projected.matrix import Branches, ProjectedMatrix, Projection

Gradient = Callable[[Tensor, int], Tensor]


def projected(
    weight: Tensor,
    branches: Branches,
    *,
    rank: int,
    period: int = 10**6,
    gamma: int = 0,
    layers: int = 2,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> ProjectedMatrix:
    """One matrix in `layers.0` of that many layers."""
    draw = Draw(tuple(f"layers.{i}" for i in range(layers)), gamma, period, seed)
    shared = Projection(rank, period, branches, draw, dtype, seed)
    return ProjectedMatrix(weight, "layers.0.weight", shared, index=0, count=1)


def descend(matrix: ProjectedMatrix, weight: Tensor, gradient: Gradient, steps: int, *, lr: float) -> None:
    """`steps` updates of `weight`."""
    for update in range(steps):
        matrix.gather(gradient(weight, update))
        matrix.apply_(factor=1.0, lr=lr, update=update, key=stream_key(0, update, 0, "w", "test"))
        matrix.close(update + 1)
        matrix.open(update + 1)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
