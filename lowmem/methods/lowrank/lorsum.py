"""LoRSum: the best rank-r approximation of a sum of low-rank matrices, by alternating small least squares.

One step of gradient descent on W = W0 + s B A leaves the matrices of rank r. LoRSum goes back to the nearest one,

    min over A', B'   1/2 |R^1/2 (B' A' - T) L^1/2|^2 + damping,      T = B A + sum_j c_j R^-1 T_j L^-1

without ever forming T or G = dLoss/dW: each T_j is met only through products with a factor,

    A' = A + (Bh' R Bh + l I)^-1 ( sum_j c_j (Bh' T_j) L^-1 - Bh' R (Bh - B) A )        Bh: the newest B
    B' = B + ( sum_j c_j R^-1 (T_j Ah') - B (Ah - A) L Ah' ) (Ah L Ah' + l I)^-1        Ah: the newest A

written as increments, so that coefficients of zero leave the factors as they are, bit for bit. R (m) and L (n) are
diagonal metrics. Letters: W is m x n, B (m, R), A (R, n); in code `out` is B's side and `inn` is A's.

`jacobi` computes both from the old factors and needs of the gradient only B'G and GA', which autograd gives anyhow;
without damping and metric it is ScaledGD (arXiv 2402.02347). `gauss_seidel` uses A' for B', which needs the gradient
itself as a product of output gradients and inputs; it ends, over many sweeps, at the truncated SVD of T.
Source: Almansoori et al., "Beyond SGD, Without SVD" (arXiv 2602.16456); formulas as in the authors' algorithm,
code ours. The rule that trains adapters with them is in `lorsum_rule.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Term(Protocol):
    """A matrix T (m, n) that is known through its products with thin matrices."""

    def onto_out(self, b: Tensor) -> Tensor:
        """b' T (R, n) for b (m, R)."""
        ...

    def onto_inn(self, a: Tensor) -> Tensor:
        """T a' (m, R) for a (R, n)."""
        ...


@dataclass(frozen=True)
class Product:
    """T = left @ right, of any inner size: momentum, or output gradients' @ inputs."""

    left: Tensor
    right: Tensor

    def onto_out(self, b: Tensor) -> Tensor:
        return (b.T @ self.left) @ self.right

    def onto_inn(self, a: Tensor) -> Tensor:
        return self.left @ (self.right @ a.T)


@dataclass(frozen=True)
class AtIterate:
    """T known only at the current factors: `out` = B' T and `inn` = T A'. Enough for `jacobi` and one-sided steps."""

    out: Tensor
    inn: Tensor

    def onto_out(self, b: Tensor) -> Tensor:
        return self.out

    def onto_inn(self, a: Tensor) -> Tensor:
        return self.inn


Sum = Sequence[tuple[Tensor | float, Term]]
"""Coefficients and terms of T beside B A."""


@dataclass(frozen=True)
class Metric:
    """Diagonal weights of the distance: `out` (m,) or (1,), `inn` (n,) or (1,); all positive."""

    out: Tensor
    inn: Tensor

    @staticmethod
    def plain(like: Tensor) -> Metric:
        """The Frobenius norm."""
        one = torch.ones(1, dtype=like.dtype, device=like.device)
        return Metric(one, one)


@dataclass(frozen=True)
class Damping:
    """Added to the diagonals of the two R x R systems: `out` to the Gram of B (which solves for A), `inn` to A's.

    Besides, `relative` times the mean eigenvalue of each: rescaling A against B then changes nothing.
    """

    out: float = 0.0
    inn: float = 0.0
    relative: float = 0.0


@dataclass(frozen=True)
class Factors:
    """B A: `a` (R, n) and `b` (m, R)."""

    a: Tensor
    b: Tensor


def solve_a(start: Factors, b: Tensor, terms: Sum, metric: Metric, damping: Damping) -> Tensor:
    """The best A' for the newest `b`, (R, n)."""
    weighted = b * metric.out[:, None]
    right = _combine(terms, lambda term: term.onto_out(b)) / metric.inn
    if b is not start.b:
        right = right - (weighted.T @ (b - start.b)) @ start.a
    return start.a + _inverse(weighted.T @ b, damping.out, damping.relative) @ right


def solve_b(start: Factors, a: Tensor, terms: Sum, metric: Metric, damping: Damping) -> Tensor:
    """The best B' for the newest `a`, (m, R)."""
    weighted = a * metric.inn
    right = _combine(terms, lambda term: term.onto_inn(a)) / metric.out[:, None]
    if a is not start.a:
        right = right - start.b @ ((a - start.a) @ weighted.T)
    return start.b + right @ _inverse(a @ weighted.T, damping.inn, damping.relative)


def jacobi(start: Factors, terms: Sum, metric: Metric, damping: Damping) -> Factors:
    """Both half steps from the old factors. To first order it counts the part of the step that both can make twice."""
    return Factors(
        solve_a(start, start.b, terms, metric, damping),
        solve_b(start, start.a, terms, metric, damping),
    )


def gauss_seidel(start: Factors, terms: Sum, metric: Metric, damping: Damping, *, sweeps: int = 1) -> Factors:
    """A from B, then B from the new A, `sweeps` times; the damping pulls towards `start` throughout.

    Every term must be known everywhere: an `AtIterate` here would answer for the old factors.
    """
    now = start
    for _ in range(sweeps):
        a = solve_a(start, now.b, terms, metric, damping)
        now = Factors(a, solve_b(start, a, terms, metric, damping))
    return now


def tangent(factors: Factors, known: AtIterate, damping: Damping) -> Product:
    """The part of T that moves within the matrices of rank r: P T + (I - P) T Q, a product of inner size 2 R.

    P and Q project on B's columns and A's rows. All that `known` says about T, and nothing else.
    """
    a, b = factors.a, factors.b
    by_b = b @ _inverse(b.T @ b, damping.out, damping.relative)
    rest = (known.inn - by_b @ (known.out @ a.T)) @ _inverse(a @ a.T, damping.inn, damping.relative)
    return Product(torch.cat([by_b, rest], dim=1), torch.cat([known.out, a]))


def tangent_square(factors: Factors, known: AtIterate, damping: Damping) -> Tensor:
    """The squared Frobenius norm of `tangent`, a scalar, from R x R matrices alone."""
    a, b = factors.a, factors.b
    within = _inverse(b.T @ b, damping.out, damping.relative)
    both = known.out @ a.T
    beside = known.inn.T @ known.inn - both.T @ within @ both
    by_b = (within * (known.out @ known.out.T)).sum()
    return by_b + (_inverse(a @ a.T, damping.inn, damping.relative) * beside).sum().clamp_min(0)


def _combine(terms: Sum, product: _Product) -> Tensor:
    coefficient, term = terms[0]
    total = product(term) * coefficient
    for coefficient, term in terms[1:]:
        total = total + product(term) * coefficient
    return total


class _Product(Protocol):
    def __call__(self, term: Term, /) -> Tensor: ...


def _inverse(gram: Tensor, absolute: float, relative: float) -> Tensor:
    """(gram + damping I)^-1 in gram's dtype. In fp64: fp32 loses the small eigenvalues of a Gram matrix."""
    wide = gram.double()
    diagonal = wide.diagonal()
    shift = diagonal.mean() * relative + absolute
    inverse: Tensor = torch.linalg.inv_ex(wide + torch.diag_embed(shift.expand(len(wide)))).inverse
    return inverse.to(gram.dtype)
