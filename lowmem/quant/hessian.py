"""Second moments of the inputs of linear layers, streamed: one (n, n) matrix per distinct input, nothing else kept."""

from __future__ import annotations

import torch
from torch import Tensor

DAMPING = 0.01
"""Share of the mean of the diagonal that `damped` adds to it."""


class SecondMoment:
    """The running mean of x^T x over rows of inputs, fp32, not centred."""

    def __init__(self, n: int, device: torch.device | None = None) -> None:
        self.sum = torch.zeros(n, n, dtype=torch.float32, device=device)
        self.rows = 0

    def add_(self, x: Tensor) -> None:
        """Add every row of `x` (..., n), of any float type."""
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        self.sum.addmm_(rows.T, rows)
        self.rows += rows.shape[0]

    def value(self) -> Tensor:
        """(n, n) fp32, newly allocated. Raises `ValueError` before the first row."""
        if not self.rows:
            raise ValueError("no input was seen: run calibration text through the layer first")
        return self.sum / self.rows

    @property
    def nbytes(self) -> int:
        return self.sum.numel() * self.sum.element_size()


def damped(H: Tensor, ridge: float = DAMPING) -> Tensor:
    """H / mean(diag H) + ridge I, fp32, symmetric: positive definite, with diagonal near 1.

    An input that was always zero gives the identity.
    """
    mean = float(H.diagonal().mean())
    eye = torch.eye(H.shape[0], dtype=torch.float32, device=H.device)
    if mean <= 0:
        return eye
    return (H + H.T).float() / (2 * mean) + ridge * eye
