"""The C++ kernels as torch operators `lowmem::perturb` and `lowmem::update_`.

Being operators with fake implementations they run under fake tensors, so the planner counts what they allocate:
the results and nothing else. Same functions and bits as `reference`; weights need contiguous rows.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from lowmem.errors import KernelUnavailable
from lowmem.kernels.build import LEVELS, build, load
from lowmem.kernels.noise import Kind, LowRank, Rows, fp32, matrix_shape, row_numbers
from lowmem.kernels.reference import Update, as_matrix, result

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_RADEMACHER, _GAUSSIAN, _LOW_RANK = range(3)


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The kernels, built when needed. Raises `KernelUnavailable`."""
    return load(build())


def level() -> int:
    """Index into `LEVELS`: the best that this processor has, or the one that `LOWMEM_ISA` names.

    Raises `KernelUnavailable` when that one is unknown or cannot run here.
    """
    best: int = library().lowmem_best_level()
    named = os.environ.get("LOWMEM_ISA")
    if named is None:
        return best
    if named not in LEVELS[: best + 1]:
        usable = ", ".join(LEVELS[: best + 1])
        raise KernelUnavailable(f"LOWMEM_ISA={named} cannot run on this processor; use one of {usable}")
    return LEVELS.index(named)


def direction(
    shape: Sequence[int], key: int, kind: Kind, *, rows: Rows = None, device: torch.device | None = None
) -> Tensor:
    """`reference.direction` on the CPU: a perturbation of zeros, of which one row is stored."""
    where = rows.device if isinstance(rows, Tensor) else device
    count, cols = matrix_shape(shape)
    zeros = torch.zeros(1, cols, device=where).expand(count, cols)
    return _perturbed(zeros, shape, key, 1.0, kind, rows, None)


def perturbed(
    weight: Tensor, key: int, eps: float, kind: Kind, *, rows: Rows = None, out: Tensor | None = None
) -> Tensor:
    """`reference.perturbed` on the CPU, in one pass."""
    return _perturbed(_matrix(weight), weight.shape, key, eps, kind, rows, out)


def perturbed_pair(weight: Tensor, key: int, eps: float, kind: Kind) -> tuple[Tensor, Tensor]:
    """`reference.perturbed_pair` on the CPU: the noise is drawn and the weight read once for both signs."""
    plus, minus = result(weight, weight.shape, None), result(weight, weight.shape, None)
    with torch.no_grad():
        torch.ops.lowmem.perturb(
            as_matrix(plus), as_matrix(minus), _matrix(weight), None, _signed(key), eps, *_code(kind)
        )
    return plus, minus


def update_(
    weight: Tensor, terms: Sequence[tuple[int, float]], kind: Kind, *, rounding_key: int, decay: float = 0.0
) -> None:
    """`reference.update_` on the CPU: the weight is read and written once, whatever the number of terms."""
    replay_(weight, [(terms, rounding_key)], kind, decay=decay)


def replay_(weight: Tensor, updates: Sequence[Update], kind: Kind, *, decay: float = 0.0) -> None:
    """`reference.replay_` on the CPU: the weight is read and written once, whatever the number of updates."""
    keys = [_signed(key) for terms, _ in updates for key, _ in terms]
    coefs = [coef for terms, _ in updates for _, coef in terms]
    ends = list(accumulate(len(terms) for terms, _ in updates))
    rounding = [_signed(key) for _, key in updates]
    with torch.no_grad():
        torch.ops.lowmem.update_(_matrix(weight), keys, coefs, ends, *_code(kind), fp32(1.0 - decay), rounding)


def _perturbed(
    matrix: Tensor, shape: Sequence[int], key: int, eps: float, kind: Kind, rows: Rows, out: Tensor | None
) -> Tensor:
    numbers, result_shape = (None, shape) if rows is None else row_numbers(shape, rows, matrix.device)
    out = result(matrix, result_shape, out)
    target = out.view(matrix.shape[0] if numbers is None else numbers.shape[0], matrix.shape[1])
    with torch.no_grad():
        torch.ops.lowmem.perturb(target, None, matrix, numbers, _signed(key), eps, *_code(kind))
    return out


def _matrix(weight: Tensor) -> Tensor:
    matrix = as_matrix(weight)
    if matrix.shape[1] > 1 and matrix.stride(1) != 1:
        raise ValueError(
            f"weight of shape {tuple(weight.shape)} has strides {weight.stride()}: the native kernels need"
            " contiguous rows; call .contiguous() first, or set LOWMEM_KERNELS=reference"
        )
    return matrix


def _signed(key: int) -> int:
    """A 64-bit key as the signed number that an operator takes."""
    return key - 2**64 if key >= 2**63 else key


def _code(kind: Kind) -> tuple[int, int]:
    match kind:
        case LowRank(rank):
            return _LOW_RANK, rank
        case "rademacher":
            return _RADEMACHER, 0
        case "gaussian":
            return _GAUSSIAN, 0
    raise ValueError(f"kind={kind!r} is no direction; use 'rademacher', 'gaussian' or LowRank(r)")


_Library: Any = torch.library.Library  # untyped in torch
_OPS = _Library("lowmem", "DEF")
_OPS.define(
    "perturb(Tensor(a!) plus, Tensor(b!)? minus, Tensor weight, Tensor? rows, int key, float eps, int kind, int rank)"
    " -> ()"
)
_OPS.define(
    "update_(Tensor(a!) weight, int[] keys, float[] coefs, int[] ends, int kind, int rank, float keep, "
    "int[] rounding_keys) -> ()"
)


def _perturb(
    plus: Tensor,
    minus: Tensor | None,
    weight: Tensor,
    rows: Tensor | None,
    key: int,
    eps: float,
    kind: int,
    rank: int,
) -> None:
    rows = None if rows is None else rows.contiguous()
    wrong = library().lowmem_perturb(
        *(weight.data_ptr(), plus.data_ptr(), None if minus is None else minus.data_ptr()),
        *(None if rows is None else rows.data_ptr(), *plus.shape, weight.stride(0), weight.shape[0]),
        *(_TYPES[weight.dtype], kind == _GAUSSIAN, rank, _unit(rank), key % 2**64, eps),
        *(level(), torch.get_num_threads()),
    )
    if rows is not None and wrong >= 0:
        raise IndexError(f"row {int(rows[wrong])} is outside a weight of {weight.shape[0]} rows")


def _update(
    weight: Tensor,
    keys: list[int],
    coefs: list[float],
    ends: list[int],
    kind: int,
    rank: int,
    keep: float,
    rounding_keys: list[int],
) -> None:
    key_array = (ctypes.c_uint64 * len(keys))(*(key % 2**64 for key in keys))
    coef_array = (ctypes.c_float * len(coefs))(*coefs)
    end_array = (ctypes.c_int64 * len(ends))(*ends)
    rounding_array = (ctypes.c_uint64 * len(ends))(*(key % 2**64 for key in rounding_keys))
    library().lowmem_update(
        *(weight.data_ptr(), *weight.shape, weight.stride(0), _TYPES[weight.dtype]),
        *(kind == _GAUSSIAN, rank, _unit(rank), key_array, coef_array, len(keys)),
        *(end_array, rounding_array, len(ends), keep, level(), torch.get_num_threads()),
    )


def _unit(rank: int) -> float:
    return LowRank(rank).unit if rank else 1.0


def _writes_its_arguments(*_: object) -> None:
    """Both operators return nothing and allocate nothing."""


for _name, _function in (("perturb", _perturb), ("update_", _update)):
    _OPS.impl(_name, _function, "CPU")
    torch.library.register_fake(f"lowmem::{_name}", _writes_its_arguments, lib=_OPS)
