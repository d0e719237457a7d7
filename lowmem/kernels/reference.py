"""The definition, in plain torch, of the passes that apply a random direction (`noise.py`) to weights.

Computed in fp32 with one rounding per operation and never contracted: `round(W + fl(eps * z))`, eps itself
rounded to fp32 first. The bits of NaN are not part of the definition (NaN stays NaN). The other
implementations give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowmem.kernels.noise import (
    Kind,
    LowRank,
    Rows,
    direction,
    fp32,
    matrix_shape,
    noise,
    rounding_bits,
    row_numbers,
    stream_key,
    tiles,
)

__all__ = [
    "Kind",
    "LowRank",
    "Rows",
    "direction",
    "perturbed",
    "perturbed_pair",
    "replay_",
    "stochastic_round",
    "stream_key",
    "update_",
]


def as_matrix(weight: Tensor) -> Tensor:
    """`weight` as (rows, cols), sharing memory. Raises `ValueError` when its strides forbid that."""
    if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"weight is {weight.dtype}; perturbations work on float32, bfloat16 and float16")
    if weight.dim() == 2:
        return weight
    if weight.dim() > 2 and not weight.is_contiguous():
        raise ValueError(f"weight of shape {tuple(weight.shape)} is not contiguous; call .contiguous() first")
    return weight.reshape(matrix_shape(weight.shape))


def result(weight: Tensor, shape: Sequence[int], out: Tensor | None) -> Tensor:
    """`out` if it can hold a result of `shape` in the weight's dtype, or a new tensor. Raises `ValueError`."""
    if out is None:
        return torch.empty(tuple(shape), dtype=weight.dtype, device=weight.device)
    if tuple(out.shape) != tuple(shape) or out.dtype != weight.dtype or not out.is_contiguous():
        raise ValueError(
            f"out is {out.dtype} {tuple(out.shape)} with strides {out.stride()};"
            f" the result is contiguous {weight.dtype} {tuple(shape)}"
        )
    return out


def perturbed(
    weight: Tensor, key: int, eps: float, kind: Kind, *, rows: Rows = None, out: Tensor | None = None
) -> Tensor:
    """`round(W + fl(eps * z))` in the weight's dtype, new or in `out`; with `rows` exactly its `[rows]`.

    Round-to-nearest-even; for fp32 the plain sum. A caller that repeats this passes `out`: fresh memory costs more
    than the pass itself (page faults, measured 4x on a CPU). Raises `ValueError` for dtypes other than fp32, bf16 and
    fp16, and for an `out` that cannot hold the result.
    """
    with torch.no_grad():
        matrix = as_matrix(weight)
        numbers, result_shape = row_numbers(weight.shape, rows, weight.device)
        out = result(weight, result_shape, out)
        target = out.view(numbers.shape[0], matrix.shape[1])
        for row, col in tiles(*target.shape, kind=kind, like=matrix):
            picked = matrix[:, col].index_select(0, numbers[row]).float()
            shift = noise(numbers[row], col.start, col.stop - col.start, key, kind) * fp32(eps)
            target[row, col] = (picked + shift).to(weight.dtype)
        return out


def perturbed_pair(weight: Tensor, key: int, eps: float, kind: Kind) -> tuple[Tensor, Tensor]:
    """`perturbed` with +eps and with -eps."""
    return perturbed(weight, key, eps, kind), perturbed(weight, key, -eps, kind)


def update_(
    weight: Tensor, terms: Sequence[tuple[int, float]], kind: Kind, *, rounding_key: int, decay: float = 0.0
) -> None:
    """In place `W <- round(fl(W (1 - decay)) - sum_j fl(coef_j z_j))` for terms (key_j, coef_j), in one pass.

    The sum starts at zero and runs in fp32 in the given order. bf16 and fp16 round stochastically with the
    noise of `rounding_key` (unbiased; a value that needs no rounding stays), fp32 to nearest.
    """
    with torch.no_grad():
        matrix = as_matrix(weight)
        numbers, _ = row_numbers(weight.shape, None, weight.device)
        for row, col in tiles(*matrix.shape, kind=kind, like=matrix):
            width = col.stop - col.start
            total = torch.zeros((row.stop - row.start, width), dtype=torch.float32, device=weight.device)
            for key, coef in terms:
                total = total + noise(numbers[row], col.start, width, key, kind) * fp32(coef)
            moved = matrix[row, col].float() * fp32(1.0 - decay) - total
            matrix[row, col] = _round(moved, weight.dtype, numbers[row], col.start, rounding_key)


Update = tuple[Sequence[tuple[int, float]], int]
"""Terms (key, coefficient) of one update, and its rounding key."""


def replay_(weight: Tensor, updates: Sequence[Update], kind: Kind, *, decay: float = 0.0) -> None:
    """In place every one of `updates`, in order: what a call of `update_` for each would leave, bit for bit."""
    for terms, rounding_key in updates:
        update_(weight, terms, kind, rounding_key=rounding_key, decay=decay)


def stochastic_round(x: Tensor, dtype: torch.dtype, key: int, *, first_row: int = 0) -> Tensor:
    """fp32 `x` in `dtype`, rounded up with probability equal to the fraction of a step it lies above.

    Numbers that `dtype` holds exactly, infinities and NaN stay; fp32 returns a copy. With `first_row`, `x` is rounded
    as those rows of a larger tensor are. Raises `ValueError` for other dtypes.
    """
    if x.dtype != torch.float32:
        raise ValueError(f"x is {x.dtype}; stochastic rounding starts from float32")
    matrix = x.reshape(matrix_shape(x.shape))
    numbers, _ = row_numbers(x.shape, None, x.device)
    numbers = numbers + first_row
    out = torch.empty(matrix.shape, dtype=dtype, device=x.device)
    for row, col in tiles(*matrix.shape, like=matrix):
        out[row, col] = _round(matrix[row, col], dtype, numbers[row], col.start, key)
    return out.reshape(x.shape)


def _round(x: Tensor, dtype: torch.dtype, rows: Tensor, first: int, key: int) -> Tensor:
    if dtype == torch.float32:
        return x
    if dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"cannot round stochastically to {dtype}; use bfloat16 or float16")
    noise = rounding_bits(rows, first, x.shape[1], key).to(torch.int32)
    rounded = _to_bfloat16(x, noise) if dtype == torch.bfloat16 else _to_float16(x, noise)
    return torch.where(torch.isfinite(x), rounded, x.to(dtype))


def _to_bfloat16(x: Tensor, noise: Tensor) -> Tensor:
    """The 16 bits that bf16 lacks, plus 16 random bits, carry with the right probability."""
    bits = (x.contiguous().view(torch.int32) + noise) & -0x10000
    return bits.view(torch.float32).to(torch.bfloat16)


def _to_float16(x: Tensor, noise: Tensor) -> Tensor:
    """As for bf16, with 13 bits.

    Below 2^-14, where the step of fp16 no longer shrinks, 2^-14 is added while rounding: the step of fp32
    is then 2^13 times finer than fp16's, as it is for larger numbers.
    """
    size = x.abs()
    offset = torch.where(size < 2.0**-14, 2.0**-14, 0.0)
    bits = ((size + offset).view(torch.int32) + (noise >> 3)) & -0x2000
    return torch.copysign(bits.view(torch.float32) - offset, x).to(torch.float16)
