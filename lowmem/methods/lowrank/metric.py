"""Diagonal metrics of LoRSum: how strongly each output and input of a layer takes part, from two vectors per layer.

    tangent    out = mean over inputs of T^2          inn = mean over outputs of T^2
    kfac       out = N * sum over rows of s^2         inn = mean over rows of x^2
    shampoo    out = N * diag(GG')                    inn = N * diag(G'G)              G = S'X = sum of s x'

T is the part of the gradient G that autograd's two products tell (`lorsum.tangent`); it costs no observation at all.
x (n) are a layer's inputs, s (m) the gradients at its outputs, one row per token, N rows. The loss is a mean, so s
carries 1/N. Rows whose s is zero (padding, tokens after the last label) carry no gradient and do not count. All are
averaged over steps (`metric_decay`, with bias correction; the authors start their averages at one instead) and used as
(average + floor * mean)^power. Ours differs in that the floor is relative, so the metric is blind to the loss's scale.
`kfac` and `shampoo` are the authors'. `tangent` is ours: with power 1/2 it divides by the second moment of the
gradient of a *batch*, factored into rows and columns as in Adafactor (arXiv 1804.04235), where `kfac` divides by
that of single tokens and so makes steps shorter when tokens disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lowmem.methods.lowrank.lorsum import Metric, Product

Kind = Literal["tangent", "kfac", "shampoo", "none"]
TINY = 1e-30
"""Keeps the metric of a layer without any gradient positive."""


@dataclass(frozen=True)
class Second:
    """Second moments of one layer in one step: `out` (m,), `inn` (n,), before averaging."""

    out: Tensor
    inn: Tensor


def kfac(squares_out: Tensor, squares_inn: Tensor, rows: Tensor) -> Second:
    """From sums of squares over all rows of the effective batch; `rows` is a scalar, their number."""
    return Second(squares_out * rows, squares_inn / rows.clamp_min(1))


def shampoo(inputs: Tensor, gradients: Tensor, rows: Tensor) -> Second:
    """From the rows themselves, `inputs` (N, n) and `gradients` (N, m); G is not formed where N is smaller."""
    out, inn = gram_diagonals(inputs, gradients)
    return Second(out * rows, inn * rows)


def of_product(term: Product) -> Second:
    """Mean squares of the rows and of the columns of left @ right, which is never formed."""
    left, right = term.left, term.right
    out = ((left @ (right @ right.T)) * left).sum(1) / right.shape[1]
    inn = (((left.T @ left) @ right) * right).sum(0) / left.shape[0]
    return Second(out.clamp_min(0), inn.clamp_min(0))


def gram_diagonals(inputs: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """diag(GG') (m,) and diag(G'G) (n,) of G = gradients' @ inputs; each sums to the squared Frobenius norm of G."""
    if inputs.shape[0] < min(inputs.shape[1], gradients.shape[1]):
        out = (gradients * ((inputs @ inputs.T) @ gradients)).sum(0)
        inn = (inputs * ((gradients @ gradients.T) @ inputs)).sum(0)
        return out, inn
    squares = (gradients.T @ inputs).square()
    return squares.sum(1), squares.sum(0)


def average_(state: Tensor, value: Tensor, *, decay: float, t: int) -> Tensor:
    """`state` moves towards `value`; returns the average without its bias towards zero. `t` counts from 1."""
    state.lerp_(value, 1 - decay)
    return state / (1 - decay**t)


def root_mean_square(second: Second) -> Tensor:
    """Of the entries of the gradient whose mean squares these are."""
    return (second.out.mean() + TINY).sqrt()


def normalised(second: Second, *, power: float, floor: float) -> tuple[Metric, Tensor]:
    """The metric with mean one on both sides, and the scalar by which it was divided."""
    out, inn = (_powered(side, power, floor) for side in (second.out, second.inn))
    mean_out, mean_inn = out.mean(), inn.mean()
    return Metric(out / mean_out, inn / mean_inn), mean_out * mean_inn


def _powered(side: Tensor, power: float, floor: float) -> Tensor:
    return (side + floor * side.mean() + TINY).pow(power)


def unit(like: Tensor) -> tuple[Metric, Tensor]:
    """The metric `none`, in the form of `normalised`."""
    return Metric.plain(like), torch.ones((), dtype=like.dtype, device=like.device)
