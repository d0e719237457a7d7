"""Products with packed low-bit weights, and rotations, as torch operators `lowmem::packed_matmul` and `lowmem::rotate`.

The C++ behind them is compiled at first use. Being operators with fake implementations they run under fake tensors, so
plans count what they allocate. This file knows bytes and integers only; `lowmem.quant` says what they mean, and its
`unpack` is the definition.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowmem.errors import KernelUnavailable
from lowmem.kernels.build import LEVELS, build, open_library

KINDS = ("s2", "s3", "s4", "int4", "int8", "e8", "e8r", "nested")
"""In the order of the C++ enumeration."""
LEARNED, SHARED, HADAMARD = range(3)
"""Forms of a rotation's stage."""


class PackedStruct(ctypes.Structure):
    """`Packed` of packed_common.h."""

    _fields_ = (
        *(("plane0", c_void_p), ("plane1", c_void_p), ("scales", c_void_p)),
        *(("m", c_int64), ("n", c_int64), ("group", c_int64), ("kind", c_int)),
        *(("gain", c_float), ("residual_scale", c_float), ("table", c_void_p), ("offset", c_int)),
        *(("patterns", c_void_p), ("residual", c_void_p), ("groups", c_void_p)),
    )


class StagesStruct(ctypes.Structure):
    """`Stages` of packed.cpp."""

    kept: object

    _fields_ = (
        *(("before", c_void_p), ("after", c_void_p), ("numbers", c_void_p)),
        *(("count", c_int64), ("matrices", c_void_p)),
    )


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The kernels, built when needed. Raises `KernelUnavailable`."""
    return declare(build(("-O3",), name="packed"))


def declare(path: Path) -> ctypes.CDLL:
    """The built library with the types of its functions."""
    loaded = open_library(path)
    loaded.lowmem_packed_best_level.argtypes = ()
    loaded.lowmem_packed_best_level.restype = c_int
    rows = (c_void_p, c_void_p, c_int64)
    loaded.lowmem_packed_matmul.argtypes = (*rows, POINTER(PackedStruct), c_int, c_int, c_int)
    loaded.lowmem_packed_matmul.restype = None
    loaded.lowmem_rotate.argtypes = (*rows, c_int64, POINTER(StagesStruct), c_int)
    loaded.lowmem_rotate.restype = None
    stages = POINTER(StagesStruct)
    loaded.lowmem_packed_layer.argtypes = (
        *(*rows, POINTER(PackedStruct), stages, c_int64, stages),
        *(c_int, c_int, c_int),
    )
    loaded.lowmem_packed_layer.restype = None
    return loaded


def level() -> int:
    """Index into `LEVELS`: the best that this processor has, or the one that `LOWMEM_ISA` names.

    Here the level avx512 also needs VNNI. Raises `KernelUnavailable` when the named one cannot run here.
    """
    best = _best(library())
    named = os.environ.get("LOWMEM_ISA")
    if named is None:
        return best
    if named not in LEVELS[: best + 1]:
        usable = ", ".join(LEVELS[: best + 1])
        raise KernelUnavailable(f"LOWMEM_ISA={named} cannot run packed products here; use one of {usable}")
    return LEVELS.index(named)


@lru_cache(maxsize=4)
def _best(loaded: ctypes.CDLL) -> int:
    best: int = loaded.lowmem_packed_best_level()
    return best


def matmul(
    x: Tensor,
    planes: Sequence[Tensor],
    scales: Tensor,
    *,
    kind: str,
    group_size: int,
    gain: float,
    residual_scale: float,
    tables: tuple[Tensor, int, Tensor, Tensor],
    exact: bool,
) -> Tensor:
    """`x` (B, n) fp32 times the transposed packed weight: fp32 (B, m), newly allocated.

    `tables`: the levels plus their offset by the lower and by the upper two bits of a nibble (2, 16), the offset, and
    the two tables of lattice kinds, see `rows_of_nibbles`. `exact`: activations stay fp32, else they are rounded to
    int8 with a scale for every 64 columns.
    """
    second = planes[1] if len(planes) > 1 else None
    table, offset, patterns, residual = tables
    numbers = (KINDS.index(kind), group_size, gain, residual_scale)
    product: Tensor = torch.ops.lowmem.packed_matmul(
        x.contiguous(), planes[0], second, scales, *numbers, table, offset, patterns, residual, exact
    )
    return product


def rotate(x: Tensor, before: Tensor | None, stages: Sequence[int], matrices: Tensor, after: Tensor | None) -> Tensor:
    """Rows of `x` (B, n) fp32 times `before`, through the stages, times `after`.

    `stages` is flat (radix, stride, form). `matrices` holds those of all stages, fp32, in their order: none for the
    form HADAMARD (Sylvester's, normalised), (i, j) for SHARED (all positions have one), (c, i, j, s) for LEARNED.
    """
    rotated: Tensor = torch.ops.lowmem.rotate(x.contiguous(), before, list(stages), matrices, after)
    return rotated


_Library: Any = torch.library.Library  # untyped in torch
_OPS = _Library("lowmem", "FRAGMENT")
_OPS.define(
    "packed_matmul(Tensor x, Tensor plane0, Tensor? plane1, Tensor scales, int kind, int group, float gain,"
    " float residual_scale, Tensor table, int offset, Tensor patterns, Tensor residual, bool exact) -> Tensor"
)
_OPS.define("rotate(Tensor x, Tensor? before, int[] stages, Tensor matrices, Tensor? after) -> Tensor")


def rows_of_nibbles(entries: Tensor) -> Tensor:
    """A table (256, 8) of numbers 0..15 as int32 (262,), the first number of a row in its lowest nibble.

    Three more rows stand on each side: kernels read four rows around the one that they want.
    """
    rows = (entries.to(torch.int64) << 4 * torch.arange(8)).sum(1)
    signed = torch.where(rows >= 1 << 31, rows - (1 << 32), rows).to(torch.int32)
    return torch.nn.functional.pad(signed, (3, 3))


def rows_address(table: Tensor) -> int:
    """Of the first row of a table of `rows_of_nibbles`."""
    return table.data_ptr() + 3 * 4


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _packed_matmul(
    x: Tensor,
    plane0: Tensor,
    plane1: Tensor | None,
    scales: Tensor,
    kind: int,
    group: int,
    gain: float,
    residual_scale: float,
    table: Tensor,
    offset: int,
    patterns: Tensor,
    residual: Tensor,
    exact: bool,
) -> Tensor:
    out = torch.empty(x.shape[0], plane0.shape[0])
    weight = PackedStruct(
        *(plane0.data_ptr(), _address(plane1), scales.data_ptr(), plane0.shape[0], x.shape[1], group, kind),
        *(gain, residual_scale, table.data_ptr(), offset, rows_address(patterns), rows_address(residual), None),
    )
    library().lowmem_packed_matmul(
        x.data_ptr(), out.data_ptr(), x.shape[0], weight, exact, level(), torch.get_num_threads()
    )
    return out


def _rotate(x: Tensor, before: Tensor | None, stages: list[int], matrices: Tensor, after: Tensor | None) -> Tensor:
    out = torch.empty_like(x)
    numbers = (c_int64 * len(stages))(*stages)
    by = StagesStruct(
        _address(before), _address(after), ctypes.addressof(numbers), len(stages) // 3, matrices.data_ptr()
    )
    library().lowmem_rotate(x.data_ptr(), out.data_ptr(), *x.shape, by, level())
    return out


def _fake_matmul(x: Tensor, plane0: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape[0], plane0.shape[0])


def _fake_rotate(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


for _name, _function, _fake in (
    ("packed_matmul", _packed_matmul, _fake_matmul),
    ("rotate", _rotate, _fake_rotate),
):
    _OPS.impl(_name, _function, "CPU")
    torch.library.register_fake(f"lowmem::{_name}", _fake, lib=_OPS)
