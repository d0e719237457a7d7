"""The face of every update rule: which state it needs, and one in-place update of one tensor."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from lowmem.kernels.reference import stochastic_round


class Rule(Protocol):
    """Stateless itself: everything that persists is in the dict that `init` returns."""

    @property
    def title(self) -> str: ...

    def init(self, weight: Tensor) -> dict[str, Tensor]:
        """New state tensors for `weight`, by slot name."""
        ...

    def update_(
        self, weight: Tensor, grad: Tensor, state: dict[str, Tensor], *, lr: float, t: int, rounding_key: int
    ) -> None:
        """`weight` and `state` are updated in place; `grad` is left alone. `t` counts updates from 1."""
        ...


def assign_(weight: Tensor, value: Tensor, rounding_key: int, *, first_row: int = 0) -> None:
    """`weight` takes `value` (fp32): exactly in fp32, by stochastic rounding in bf16 and fp16.

    `first_row`: where `weight` starts in the tensor that `rounding_key` belongs to.

    Round-to-nearest would lose every update below half a unit in the last place, which in bf16 is 0.2 % of a weight.
    """
    if weight.dtype == torch.float32:
        weight.copy_(value)
    else:
        weight.copy_(stochastic_round(value, weight.dtype, rounding_key, first_row=first_row))
