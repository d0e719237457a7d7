"""Updates that run over a few rows at a time, so that their scratch does not grow with the tensor.

A rule computes in fp32 and needs several temporaries of the size of what it updates: 16 bytes per element for AdamW,
2 GiB for the embedding of a model of 7B parameters. Cut into slabs of `SLAB` elements they take 4 MiB each. Cutting
changes no bit of the result: every operation looks at one entry, and rounding draws its noise by the row and column
that an entry has in the whole tensor (`first_row`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import EllipsisType

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from lowmem.kernels.noise import matrix_shape
from lowmem.methods.rules.base import assign_

SLAB = 2**20
"""Elements updated at a time: 4 MiB per fp32 temporary."""


@dataclass(frozen=True)
class Slab:
    """Some whole rows of a tensor, as views: writing to them writes to the tensor."""

    weight: Tensor
    grad: Tensor
    state: dict[str, Tensor]
    first_row: int

    def assign_(self, value: Tensor, rounding_key: int) -> None:
        """As `base.assign_` would for the whole tensor."""
        assign_(self.weight, value, rounding_key, first_row=self.first_row)


def slabs(weight: Tensor, grad: Tensor, state: Mapping[str, Tensor]) -> Iterator[Slab]:
    """`weight`, with `grad` and the slots of `state` that all have its shape, in slabs from the first row on."""
    for rows, first in row_ranges(weight):
        yield Slab(weight[rows], grad[rows], {name: slot[rows] for name, slot in state.items()}, first)


def row_ranges(weight: Tensor, *, multiple: int = 1) -> Iterator[tuple[slice | EllipsisType, int]]:
    """What indexes each slab of `weight`, and the number of its first row; a vector is never cut.

    All slabs but the last have a multiple of `multiple` rows. Of a fake tensor, which has no values to update, the
    first slab alone tells what memory all of them need.
    """
    rows, columns = matrix_shape(weight.shape)
    height = max(1, SLAB // max(1, columns) // multiple) * multiple
    if weight.dim() < 2 or height >= rows:
        yield ..., 0
        return
    for first in range(0, rows, height):
        yield slice(first, min(first + height, rows)), first
        if isinstance(weight, FakeTensor):
            return


def descend_(
    weight: Tensor, direction: Tensor, *, step: float, lr: float, weight_decay: float, rounding_key: int
) -> None:
    """In place `w <- round((1 - lr weight_decay) w - step direction)`, a slab at a time. `direction` in fp32."""
    for slab in slabs(weight, direction, {}):
        value = slab.weight.float() * (1 - lr * weight_decay)
        slab.assign_(value.sub_(slab.grad, alpha=step), rounding_key)
        del value
