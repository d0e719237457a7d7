"""What `lowmem diagnose forgetting` adds to a run: several ways to train it, each over a grid of learning rates."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from lowmem.config.base import Section


class Arm(Section):
    """One way to train."""

    set: dict[str, Any] = Field(default_factory=dict)
    """Keys of the run that this way changes: {method: {kind: full}, optimizer: {kind: muon}}."""
    learning_rate: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    """Each is a run. Optimizers are compared at equal learning, not at equal rates, so the grid should be wide."""


class Forgetting(Section):
    """The grid. The run's first eval_dataset is what is learned, all others are what must not be forgotten."""

    arms: Annotated[dict[str, Arm], Field(min_length=1)]
    seeds: tuple[NonNegativeInt, ...] = ()
    """Every run is made once for each. Default: the run's seed alone."""
    levels: PositiveInt = 3
    """Levels of learning at which forgetting is compared."""
    samples: PositiveInt = 64
    """Rows of each dataset on which activations and divergence are measured."""
