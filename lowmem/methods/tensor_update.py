"""One trained tensor of a layer-wise method: what it keeps of a gradient until it is updated, and the update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from lowmem.methods.rules.base import Rule


class TensorUpdate(Protocol):
    """Gathers the gradients of the micro-batches, then moves the weight. Updates are counted from 0."""

    @property
    def compact(self) -> bool:
        """Whether what is gathered is small beside a gradient, so that it may be held until backward has ended."""
        ...

    @property
    def gathered(self) -> bool: ...

    def gather(self, grad: Tensor) -> None:
        """Adds `grad`, which may be kept and overwritten."""
        ...

    def exchange(self, sum_: Callable[[Tensor], None]) -> None:
        """What was gathered is the sum over all processes, at least one of which gathered something."""
        ...

    def norm(self) -> Tensor:
        """Euclidean norm, fp32 scalar, of what was gathered, in the coordinates that are trained."""
        ...

    def apply_(self, *, factor: float, lr: float, update: int, key: int) -> None:
        """Weight and state take the update of `factor` times what was gathered, which is dropped."""
        ...

    def drop(self) -> None:
        """Forgets what was gathered."""
        ...

    def close(self, update: int) -> None:
        """Frees the state that `update` does not need any more."""
        ...

    def open(self, update: int) -> None:
        """Has the state that `update` needs; called after `close` of all tensors."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What must be saved, not copied."""
        ...


class WholeUpdate:
    """A `TensorUpdate` that keeps the gradient as it is and hands it to `rule`."""

    compact = False

    def __init__(self, weight: Tensor, rule: Rule) -> None:
        self._weight, self._rule = weight, rule
        self._state = rule.init(weight)
        self._grad: Tensor | None = None

    @property
    def gathered(self) -> bool:
        return self._grad is not None

    def gather(self, grad: Tensor) -> None:
        self._grad = grad if self._grad is None else self._grad.add_(grad)

    def exchange(self, sum_: Callable[[Tensor], None]) -> None:
        self._grad = torch.zeros_like(self._weight) if self._grad is None else self._grad
        sum_(self._grad)

    def norm(self) -> Tensor:
        if self._grad is None:
            return torch.zeros((), dtype=torch.float32, device=self._weight.device)
        norm: Tensor = self._grad.norm(dtype=torch.float32)
        return norm

    def apply_(self, *, factor: float, lr: float, update: int, key: int) -> None:
        grad, self._grad = self._grad, None
        if grad is None:
            return
        if factor != 1.0:
            grad.mul_(factor)
        self._rule.update_(self._weight, grad, self._state, lr=lr, t=update + 1, rounding_key=key)

    def drop(self) -> None:
        self._grad = None

    def close(self, update: int) -> None:
        """The same state serves all updates."""

    def open(self, update: int) -> None:
        """The same state serves all updates."""

    def state(self) -> dict[str, Tensor]:
        return self._state
