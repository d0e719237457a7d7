"""Rotations as the native and the Triton kernels take them: signs, stages of small matrices, signs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowmem.kernels import packed as native
from lowmem.kernels.packed_layer import Stages
from lowmem.quant.orthogonal import base_matrix
from lowmem.quant.rotation import Rotation


class Transform(Stages):
    """One direction of a rotation: signs before, stages, signs after; all fp32."""

    def __call__(self, x: Tensor) -> Tensor:
        return native.rotate(x, self.before, self.numbers, self.matrices, self.after)


def transform(rotation: Rotation, *, inverse: bool = False, fast: bool = True) -> Transform | None:
    """`rotation.apply`, or its inverse, ready for `kernels.packed.rotate`; None where there is nothing to do.

    Not `fast`: every stage with its matrix, as the Triton kernel takes them.
    """
    if rotation.signs is None:
        return None
    radices = rotation.schedule.radices
    if fast and radices and rotation.mode == "rht" and _is_power_of_two(math.prod(radices)):
        parts = [_hadamard(math.prod(radices))]
    else:
        kernels = rotation.kernels(torch.float32)
        parts = [
            _stage(kernel.mT if inverse else kernel, radix, math.prod(radices[:t]))
            for t, (radix, kernel) in enumerate(zip(radices, kernels, strict=True))
        ]
    if rotation.schedule.fixed > 1:
        fixed = base_matrix(rotation.schedule.fixed).float().to(rotation.signs.device)
        parts.insert(0, _stage(fixed.mT if inverse else fixed, rotation.schedule.fixed, math.prod(radices)))
    if inverse:
        parts.reverse()
    signs = rotation.signs.float()
    flat = torch.cat([matrix for _, matrix in parts]) if parts else signs.new_empty(0)
    stages = tuple(number for numbers, _ in parts for number in numbers)
    return Transform(None, stages, flat, signs) if inverse else Transform(signs, stages, flat, None)


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def _hadamard(order: int) -> tuple[tuple[int, int, int], Tensor]:
    """Stages of Sylvester matrices are one, of the product of their radices; symmetric, so its own inverse."""
    return (order, 1, native.HADAMARD), torch.empty(0)


def _stage(kernel: Tensor, radix: int, stride: int) -> tuple[tuple[int, int, int], Tensor]:
    """(radix, stride, form) and the matrices in the order of the inner loops: (i, j) or (c, i, j, s)."""
    if kernel.ndim == 2:
        return (radix, stride, native.SHARED), kernel.mT.flatten()
    by_position = kernel.reshape(-1, stride, radix, radix)
    return (radix, stride, native.LEARNED), by_position.permute(0, 3, 2, 1).flatten()
