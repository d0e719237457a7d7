"""The face of update rules that move both factors of an adapter at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lowmem.methods.lowrank.observe import Observation, Observed
from lowmem.methods.lowrank.pair import Pair


@dataclass(frozen=True)
class PairGradient:
    """What one effective batch says about one adapter."""

    a: Tensor
    """dLoss/dA (R, n) = scale B'G, before clipping."""
    b: Tensor
    """dLoss/dB (m, R) = scale GA', before clipping."""
    clip: float
    """What clipping multiplies the gradient by, at most 1."""
    observed: Observed


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

    def update_(self, pair: Pair, gradient: PairGradient, state: dict[str, Tensor], *, lr: float, t: int) -> None:
        """Both factors and `state` are updated in place. `t` counts updates from 1."""
        ...
