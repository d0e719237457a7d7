"""Shared linear algebra of the spectral rules: all singular values of a matrix pushed towards one.

Newton-Schulz, the quintic of Muon (K. Jordan, 2024): X <- a X + (b A + c A^2) X with A = X X^T on the smaller side,
from X = M / |M|. In fp32, so that every device takes the same step. Five iterations put singular values of at least
1 % of the Frobenius norm into [0.68, 1.14]; it is a scaled polar factor, not an exact one, and zero stays zero.
Scratch: three fp32 matrices at most, one of them of the weight's size per product.
"""

from __future__ import annotations

import math
from typing import Literal, assert_never

import torch
from torch import Tensor

Scale = Literal["rms", "aspect", "operator"]
"""What multiplies the orthogonal direction of a (rows, cols) matrix, see `scale_of`."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NORM_FLOOR = 1e-7


def msign(matrix: Tensor, steps: int = 5) -> Tensor:
    """U f(S) V^T of the 2-D `matrix` = U S V^T, fp32, f(S) near one. The scale of `matrix` has no effect."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).float()
    x = x / (x.norm() + NORM_FLOOR)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def scale_of(weight: Tensor, scale: Scale) -> float:
    """The factor by which the orthogonal direction of `weight` is stretched.

    rms: 0.2 sqrt(max(m, n)), entries of AdamW's usual size, so that AdamW's learning rates carry over (arXiv
    2502.16982). aspect: sqrt(max(1, m / n)), as Muon was published. operator: sqrt(m / n), unit RMS-to-RMS norm.
    """
    rows, cols = weight.shape
    match scale:
        case "rms":
            return 0.2 * math.sqrt(max(rows, cols))
        case "aspect":
            return math.sqrt(max(1.0, rows / cols))
        case "operator":
            return math.sqrt(rows / cols)
        case _:
            assert_never(scale)
