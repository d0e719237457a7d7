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
GRAM_RATIO = 2
"""From how many times as long as short on iterating on the short side's square pays: five steps on s x l take
5 (2 l + s) s^2 multiplications, or (2 l + 17 s) s^2, fewer from l = 1.5 s on."""


def msign(matrix: Tensor, steps: int = 5) -> Tensor:
    """U f(S) V^T of the 2-D `matrix` = U S V^T, fp32, f(S) near one. The scale of `matrix` has no effect."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).float()
    x = x / (x.norm() + NORM_FLOOR)
    wide = x.shape[1] >= GRAM_RATIO * x.shape[0] and steps > 1
    x = _through_the_gram(x, steps) if wide else _newton_schulz(x, steps)
    return x.T if tall else x


def _newton_schulz(x: Tensor, steps: int) -> Tensor:
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _through_the_gram(x: Tensor, steps: int) -> Tensor:
    """The same in exact arithmetic: every iterate is Q x, Q a polynomial in A = x x^T; only Q and A are iterated.

    Two products with `x` instead of two per step. With p = a I + b A + c A^2: Q <- p Q, A <- p A p, all symmetric.
    """
    a, b, c = COEFFICIENTS
    gram = x @ x.T
    q: Tensor | None = None
    for step in range(steps):
        p = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal().add_(a)
        q = p if q is None else p @ q
        if step < steps - 1:
            gram = p @ (gram @ p)
    return x if q is None else q @ x


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
