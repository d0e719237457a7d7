"""Which layers take the full-rank branch, and when each matrix looks for a new basis: functions of the update's number.

Layers are decoder layers, so that every draw needs the same memory. Each period draws `gamma` of them without
replacement; a layer's chance is q = gamma / layers in every period. Refreshes are staggered over a period, so that no
step pays for all of them, except the first, at which every matrix takes its first look.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lowmem.errors import ConfigError
from lowmem.kernels.noise import stream_key

_NUMBERED = re.compile(r"^(.*?\.\d+)\.")


def layer_of(name: str) -> str:
    """`model.layers.3.self_attn.q_proj.weight` -> `model.layers.3`; a matrix outside of layers is its own layer."""
    found = _NUMBERED.match(name)
    return found.group(1) if found else name


@dataclass(frozen=True)
class Draw:
    """`layers` in order of depth. `fixed`: the same layers in every period, for a plan: the last, which need most."""

    layers: tuple[str, ...]
    gamma: int
    period: int
    seed: int
    fixed: bool = False

    def __post_init__(self) -> None:
        if self.gamma >= len(self.layers) and self.gamma > 0:
            raise ConfigError(
                f"method.gamma: {self.gamma} of {len(self.layers)} layers would always have full rank; gamma must be "
                f"below the number of layers (at most {len(self.layers) - 1} here), or use method: full"
            )

    @property
    def share(self) -> float:
        """q, the chance of a layer to have full rank."""
        return self.gamma / max(1, len(self.layers))

    def full(self, layer: str, update: int) -> bool:
        """Whether `layer` has full rank at `update`."""
        if self.gamma == 0:
            return False
        if self.fixed:
            return layer in self.layers[-self.gamma :]
        return layer in self._drawn(update // self.period)

    def _drawn(self, period: int) -> Sequence[str]:
        def rank(layer: str) -> int:
            return stream_key(self.seed, period, 0, layer, "full rank")

        return sorted(self.layers, key=rank)[: self.gamma]


def looks(update: int, *, index: int, count: int, period: int) -> bool:
    """Whether matrix `index` of `count` sketches its gradient at `update`, for a basis from the next update on."""
    return update == 0 or (update + 1 + index * period // count) % period == 0
