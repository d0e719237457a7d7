"""How the terms of a move become an update of one tensor: as they are, or by the extreme point of a norm's ball.

With G = sum_j coef_j z_j, drawn again from the seeds of the terms, tensor by tensor:

    sum        W <- W - G
    sign       W <- W - length sign(G)                            steepest descent in the largest entry
    spectral   W <- W - length 0.2 sqrt(max(m, n)) msign(G)       steepest descent in the spectral norm; vectors and
                                                                  vocabularies, which have no such geometry, by sign
    spectral with top_k: msign of G's k largest singular directions only, found by two power iterations. The others of a
    zeroth-order G are noise, which a full msign raises to the same length (the concern of arXiv 2605.09034, abstract
    read).

With a single term sign and spectral forget the term's size, and all that is left of two forwards is one bit: they are
for histories (`history.py`). Scratch: one fp32 copy of the tensor, spectral three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lowmem.kernels.dispatch import direction, update_
from lowmem.kernels.noise import Kind, fp32
from lowmem.methods.rules.orthogonal import msign, scale_of
from lowmem.methods.rules.slabs import descend_

POWER_ITERATIONS = 2
KINDS: tuple[Literal["sign", "spectral"], ...] = ("sign", "spectral")


@dataclass(frozen=True)
class Form:
    """`length` multiplies the extreme point; `top_k` = 0 keeps all singular directions."""

    kind: Literal["sign", "spectral"]
    length: float
    top_k: int = 0


def descend_along_(
    weight: Tensor,
    terms: Sequence[tuple[int, float]],
    kind: Kind,
    form: Form,
    *,
    rounding_key: int,
    hidden: bool,
) -> None:
    """`weight` moves by `form` of its own part of `terms` (key, coefficient). `length` counts as an fp32 number.

    `hidden`: whether it is a hidden matrix, the only ones with a spectral geometry. bf16 and fp16 round stochastically.
    """
    total = torch.zeros_like(weight, dtype=torch.float32)
    update_(total, [(key, -coef) for key, coef in terms], kind, rounding_key=0)
    if form.kind == "spectral" and hidden:
        point = top_singular(total, form.top_k, key=rounding_key) if form.top_k else msign(total)
        length = fp32(form.length) * scale_of(weight, "rms")
    else:
        point, length = total.sign_(), fp32(form.length)
    descend_(weight, point, step=length, lr=0.0, weight_decay=0.0, rounding_key=rounding_key)


def top_singular(matrix: Tensor, k: int, *, key: int) -> Tensor:
    """msign of the best approximation of rank `k` to the 2-D fp32 `matrix`, by power iteration from noise of `key`."""
    basis = direction((matrix.shape[1], min(k, *matrix.shape)), key, "gaussian", device=matrix.device)
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(matrix.T @ torch.linalg.qr(matrix @ basis).Q).Q
    left: Tensor = torch.linalg.qr(matrix @ basis).Q
    return left @ msign(left.T @ matrix)
