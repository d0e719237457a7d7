"""A rule whose state is kept in fewer bits, and whose update runs over a few rows at a time.

State in bf16 is read as fp32, updated, and rounded back stochastically, so that averages with decays near one still
move (to nearest, an average with decay 0.999 stands still as soon as a change is below 1/256 of it). Only rules that
treat every entry alone may be cut into rows: `elementwise`. Scratch is then that of `SLAB` entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowmem.kernels.noise import stream_key
from lowmem.kernels.reference import stochastic_round
from lowmem.methods.rules.base import Rule

SLAB = 2**22
"""Entries updated at a time, where the rule allows it."""


@dataclass(frozen=True)
class Stored:
    """`rule` with its state in `dtype`, as far as it has the shape of the weight; the rest is small and stays."""

    rule: Rule
    dtype: torch.dtype = torch.float32
    elementwise: bool = False

    @property
    def title(self) -> str:
        return self.rule.title

    def init(self, weight: Tensor) -> dict[str, Tensor]:
        state = self.rule.init(weight)
        return {n: tensor.to(self.dtype) if tensor.shape == weight.shape else tensor for n, tensor in state.items()}

    def update_(
        self, weight: Tensor, grad: Tensor, state: dict[str, Tensor], *, lr: float, t: int, rounding_key: int
    ) -> None:
        # State of another shape (8-bit codes, sums over rows) cannot be cut here; such rules cut themselves.
        whole = not self.elementwise or any(tensor.shape != weight.shape for tensor in state.values())
        if whole or weight.numel() <= SLAB or weight.dim() < 2:
            self._update_(weight, grad, state, lr=lr, t=t, rounding_key=rounding_key)
            return
        rows = max(1, SLAB * weight.shape[0] // weight.numel())
        for start in range(0, weight.shape[0], rows):
            part = slice(start, start + rows)
            key = stream_key(rounding_key, 0, start, "", "slab")
            kept = {name: tensor[part] for name, tensor in state.items()}
            self._update_(weight[part], grad[part], kept, lr=lr, t=t, rounding_key=key)

    def _update_(
        self, weight: Tensor, grad: Tensor, state: dict[str, Tensor], *, lr: float, t: int, rounding_key: int
    ) -> None:
        if self.dtype == torch.float32:
            self.rule.update_(weight, grad, state, lr=lr, t=t, rounding_key=rounding_key)
            return
        wide = {name: tensor.float() if tensor.dtype == self.dtype else tensor for name, tensor in state.items()}
        self.rule.update_(weight, grad, wide, lr=lr, t=t, rounding_key=rounding_key)
        for name, tensor in state.items():
            value = wide.pop(name)
            if tensor.dtype == self.dtype:
                key = stream_key(rounding_key, 0, 0, name, "state")
                tensor.copy_(stochastic_round(value, self.dtype, key))
