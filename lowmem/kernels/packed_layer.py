"""Whole packed layers, rotation in, product, rotation out, in one call of the C++ kernels.

At one token a call through torch's dispatcher costs as much as a small product; this one goes to the library at once,
and layers that share an input and its rotation (q, k and v; gate and up) share the rotated, rounded input.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping, Sequence
from ctypes import c_int64
from dataclasses import dataclass

import torch
from torch import Tensor

from lowmem.kernels.packed import KINDS, PackedStruct, StagesStruct, level, library, rows_address


@dataclass(frozen=True)
class Stages:
    """A rotation as `kernels.packed.rotate` takes it."""

    before: Tensor | None
    numbers: tuple[int, ...]
    matrices: Tensor
    after: Tensor | None

    def key(self) -> int:
        """Equal for equal rotations, by their content."""
        digest = hashlib.blake2b(repr(self.numbers).encode(), digest_size=8)
        for part in (self.before, self.matrices, self.after):
            digest.update(b"none" if part is None else part.detach().numpy().tobytes())
        return int.from_bytes(digest.digest(), "little", signed=True)


class NativeLayer:
    """One layer ready to run. Keeps its tensors alive; `stale` says when the layer has others by now."""

    def __init__(
        self,
        planes: Sequence[Tensor],
        scales: Tensor,
        *,
        columns: int,
        kind: str,
        group_size: int,
        gain: float,
        residual_scale: float,
        tables: tuple[Tensor, int, Tensor, Tensor],
        into: Stages | None,
        out_of: Stages | None,
    ) -> None:
        second = planes[1] if len(planes) > 1 else None
        table, offset, patterns, residual = tables
        self._kept = (tuple(planes), scales, tables, into, out_of)
        self._rows, self._columns = planes[0].shape[0], columns
        self._addresses = (planes[0].data_ptr(), scales.data_ptr())
        self._weight = PackedStruct(
            *(planes[0].data_ptr(), None if second is None else second.data_ptr(), scales.data_ptr()),
            *(self._rows, columns, group_size, KINDS.index(kind), gain, residual_scale),
            *(table.data_ptr(), offset, rows_address(patterns), rows_address(residual), None),
        )
        self._sides = (_struct(into), _struct(out_of))
        first, last = (None if side is None else ctypes.byref(side) for side in self._sides)
        self._arguments = (ctypes.byref(self._weight), first, 0 if into is None else into.key(), last)

    def stale(self, buffers: Mapping[str, Tensor | None]) -> bool:
        """Whether the layer with these buffers has other codes or scales by now."""
        plane, scales = buffers["planes0"], buffers["scales"]
        return plane is None or scales is None or self._addresses != (plane.data_ptr(), scales.data_ptr())

    def __call__(self, x: Tensor, out: Tensor, *, exact: bool) -> None:
        """Rows of `x` (B, n), fp32 and contiguous, through the layer into `out` (B, m)."""
        library().lowmem_packed_layer(
            x.data_ptr(), out.data_ptr(), x.shape[0], *self._arguments, exact, level(), torch.get_num_threads()
        )


def _struct(stages: Stages | None) -> StagesStruct | None:
    if stages is None:
        return None
    numbers = (c_int64 * len(stages.numbers))(*stages.numbers)
    before, after = (None if signs is None else signs.data_ptr() for signs in (stages.before, stages.after))
    made = StagesStruct(before, after, ctypes.addressof(numbers), len(numbers) // 3, stages.matrices.data_ptr())
    made.kept = numbers
    return made
