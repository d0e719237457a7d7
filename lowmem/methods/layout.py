"""Where the parameters of a first-order method live: whole in this process, or a part of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor, nn

from lowmem.methods.accumulate import gradient_norm


class Layout(Protocol):
    """A rule updates `part`s; a checkpoint holds `whole`s."""

    def part(self, tensor: Tensor) -> Tensor:
        """What this process holds of a parameter or its gradient: a plain tensor that shares its memory."""
        ...

    def norm(self, parameters: Iterable[nn.Parameter]) -> float:
        """Euclidean norm of all gradients, over all processes."""
        ...

    def stream(self, parameter: Tensor) -> int:
        """A number that differs between processes where they round different entries."""
        ...

    def whole(self, part: Tensor, parameter: Tensor) -> Tensor:
        """What the `part`s of all processes make up; `part` is laid out as `parameter` is. Called by all of them."""
        ...

    def take(self, whole: Tensor, parameter: Tensor) -> Tensor:
        """The part of `whole` that belongs to this process."""
        ...


class Whole:
    """Everything is here, or the same in every process."""

    def part(self, tensor: Tensor) -> Tensor:
        return tensor

    def norm(self, parameters: Iterable[nn.Parameter]) -> float:
        return gradient_norm(parameters)

    def stream(self, parameter: Tensor) -> int:
        return 0

    def whole(self, part: Tensor, parameter: Tensor) -> Tensor:
        return part

    def take(self, whole: Tensor, parameter: Tensor) -> Tensor:
        return whole
