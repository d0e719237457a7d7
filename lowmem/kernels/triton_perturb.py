"""The fused passes as Triton kernels for NVIDIA GPUs, with the bits of `reference`.

Launched with fp fusion off: a fused multiply-add would change bits. Low-rank directions have no kernel of their own:
torch's matrix product is exact on them and is used through `reference`.

Checked against the reference in Triton's interpreter, and compiled ahead of time for sm_80 to sm_90; not run on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from lowmem.kernels import reference
from lowmem.kernels.noise import (
    STREAM_GAUSSIAN,
    STREAM_RADEMACHER,
    Kind,
    LowRank,
    Rows,
    fp32,
    matrix_shape,
    row_numbers,
)
from lowmem.kernels.reference import as_matrix, result
from lowmem.kernels.triton_kernels import perturb_kernel, update_kernel

CHUNKS = 16
"""Chunks of 64 columns per program."""
LAUNCH = {"num_warps": 4, "enable_fp_fusion": False}


def direction(
    shape: Sequence[int], key: int, kind: Kind, *, rows: Rows = None, device: torch.device | None = None
) -> Tensor:
    """`reference.direction` on a GPU: a perturbation of zeros, of which one row is stored."""
    if isinstance(kind, LowRank):
        return reference.direction(shape, key, kind, rows=rows, device=device)
    where = rows.device if isinstance(rows, Tensor) else device
    count, cols = matrix_shape(shape)
    zeros = torch.zeros(1, cols, device=where).expand(count, cols)
    numbers, result_shape = row_numbers(shape, rows, where)
    out = torch.empty((numbers.shape[0], cols), device=where)
    _launch_perturb(zeros, out, None, numbers if rows is not None else None, key, 1.0, kind)
    return out.view(result_shape)


def perturbed(
    weight: Tensor, key: int, eps: float, kind: Kind, *, rows: Rows = None, out: Tensor | None = None
) -> Tensor:
    """`reference.perturbed` on a GPU, in one pass. Row numbers are not checked there."""
    if isinstance(kind, LowRank):
        return reference.perturbed(weight, key, eps, kind, rows=rows, out=out)
    matrix = as_matrix(weight.detach())
    numbers, result_shape = row_numbers(weight.shape, rows, weight.device)
    out = result(weight, result_shape, out)
    target = out.view(numbers.shape[0], matrix.shape[1])
    _launch_perturb(matrix, target, None, numbers if rows is not None else None, key, eps, kind)
    return out


def perturbed_pair(weight: Tensor, key: int, eps: float, kind: Kind) -> tuple[Tensor, Tensor]:
    """`reference.perturbed_pair` on a GPU: the noise is drawn and the weight read once for both signs."""
    if isinstance(kind, LowRank):
        return reference.perturbed_pair(weight, key, eps, kind)
    plus, minus = result(weight, weight.shape, None), result(weight, weight.shape, None)
    _launch_perturb(as_matrix(weight.detach()), as_matrix(plus), as_matrix(minus), None, key, eps, kind)
    return plus, minus


def update_(
    weight: Tensor, terms: Sequence[tuple[int, float]], kind: Kind, *, rounding_key: int, decay: float = 0.0
) -> None:
    """`reference.update_` on a GPU: the weight is read and written once, whatever the number of terms."""
    if isinstance(kind, LowRank):
        return reference.update_(weight, terms, kind, rounding_key=rounding_key, decay=decay)
    matrix = as_matrix(weight.detach())
    if matrix.numel() == 0:
        return None
    _require_rows(matrix)
    words = [list(_words(key)) for key, _ in terms]
    keys = torch.tensor(words or [[0, 0]], dtype=torch.int64, device=weight.device)
    coefs = torch.tensor([coef for _, coef in terms] or [0.0], dtype=torch.float32, device=weight.device)
    programs, grid = _grid(matrix.shape[0], matrix.shape[1])
    update_kernel[grid](
        *(matrix, keys, coefs, len(terms), matrix.shape[1], matrix.stride(0), programs),
        *(fp32(1.0 - decay), *_words(rounding_key), _stream(kind), CHUNKS),
        **LAUNCH,
    )
    return None


def replay_(weight: Tensor, updates: Sequence[reference.Update], kind: Kind, *, decay: float = 0.0) -> None:
    """`reference.replay_` on a GPU, one pass for each update."""
    for terms, rounding_key in updates:
        update_(weight, terms, kind, rounding_key=rounding_key, decay=decay)


def _launch_perturb(
    matrix: Tensor, plus: Tensor, minus: Tensor | None, rows: Tensor | None, key: int, eps: float, kind: Kind
) -> None:
    if plus.numel() == 0:
        return
    _require_rows(matrix)
    programs, grid = _grid(plus.shape[0], plus.shape[1])
    perturb_kernel[grid](
        *(matrix, plus, plus if minus is None else minus, plus if rows is None else rows.contiguous()),
        *(plus.shape[1], matrix.stride(0), programs, *_words(key), fp32(eps)),
        *(_stream(kind), rows is not None, minus is not None, CHUNKS),
        **LAUNCH,
    )


def _require_rows(matrix: Tensor) -> None:
    if matrix.shape[1] > 1 and matrix.stride(1) != 1:
        raise ValueError(
            f"weight of shape {tuple(matrix.shape)} has strides {matrix.stride()}: the Triton kernels need"
            " contiguous rows; call .contiguous() first, or set LOWMEM_KERNELS=reference"
        )


def _grid(rows: int, cols: int) -> tuple[int, Any]:
    programs = triton.cdiv(cols, 64 * CHUNKS)
    return programs, (rows * programs,)


def _words(key: int) -> tuple[int, int]:
    return key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF


def _stream(kind: Kind) -> int:
    if kind == "rademacher":
        return STREAM_RADEMACHER
    if kind == "gaussian":
        return STREAM_GAUSSIAN
    raise ValueError(f"kind={kind!r} is no direction; use 'rademacher', 'gaussian' or LowRank(r)")
