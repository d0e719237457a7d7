"""The face of update rules that move both factors of an adapter at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lowmem.methods.lowrank.lorsum import AtIterate, Damping, Factors, Product, tangent, tangent_square
from lowmem.methods.lowrank.observe import Observation, Observed
from lowmem.methods.lowrank.pair import Pair

JITTER = 1e-5
"""Least relative damping: fp32 Gram matrices have errors of 1e-7 of their largest eigenvalue."""
SMALLEST = 1e-20
"""Absolute damping where a Gram matrix is zero, as B's is at the start: its right-hand side is zero too."""

NEARLY_NONE = Damping(SMALLEST, SMALLEST, JITTER)


@dataclass(frozen=True)
class PairGradient:
    """What one effective batch says about one adapter."""

    a: Tensor
    """dLoss/dA (R, n) = scale B'G, before clipping."""
    b: Tensor
    """dLoss/dB (m, R) = scale GA', before clipping."""
    observed: Observed
    clip: float = 1.0
    """What clipping multiplies the gradient by, at most 1."""

    def known(self, pair: Pair) -> AtIterate:
        """B'G and GA', clipped, without alpha / r."""
        factor = self.clip / pair.scale
        return AtIterate(self.a * factor, self.b * factor)

    def tangent(self, pair: Pair) -> Product:
        """All that the two gradients tell about G, clipped: its part that moves within the matrices of rank r."""
        return tangent(_factors(pair), self.known(pair), NEARLY_NONE)

    def square(self, pair: Pair) -> Tensor:
        """The squared norm of `tangent`, a scalar."""
        return tangent_square(_factors(pair), self.known(pair), NEARLY_NONE)


def _factors(pair: Pair) -> Factors:
    return Factors(pair.a.detach(), pair.b.detach())


class PairRule(Protocol):
    """Stateless itself: everything that persists is in the dict that `init` returns."""

    @property
    def title(self) -> str: ...

    @property
    def observes(self) -> Observation:
        """What has to be known besides the two gradients."""
        ...

    def init(self, pair: Pair) -> dict[str, Tensor]:
        """New state tensors for `pair`, by slot name."""
        ...

    def update_(
        self, pair: Pair, gradient: PairGradient, state: dict[str, Tensor], *, lr: float, peak: float, t: int
    ) -> None:
        """Both factors and `state` are updated in place. `peak`: the largest `lr` so far; `t` counts from 1."""
        ...
