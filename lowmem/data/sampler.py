"""Which rows make up a step: a pure function of (seed, step), so resuming costs nothing and repeats nothing.

Datasets are mixed by weight. Weight 1 shows each row once per epoch, 2 twice, 0.5 half of the rows, and the other half
in the next epoch: each dataset walks through its own shuffled passes, and the epoch takes as many rows of it as its
weight says. The rows of an epoch are then shuffled among each other.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

from lowmem.data.permutation import Permutation

Place = tuple[int, int]
"""(dataset, row)."""


class Sampler:
    """Rows by step. A window is what one optimizer step sees: `batch_size` x `accumulation` rows, fewer at the end of
    an epoch."""

    def __init__(
        self, sizes: Sequence[int], weights: Sequence[float], *, batch_size: int, accumulation: int, seed: int
    ) -> None:
        self._sizes, self._seed = tuple(sizes), seed
        self._quotas = [max(1, math.floor(size * weight + 0.5)) for size, weight in zip(sizes, weights, strict=True)]
        self._ends = list(accumulate(self._quotas))
        self._batch_size, self._window = batch_size, batch_size * accumulation
        self._order = lru_cache(maxsize=2 * len(self._sizes) + 2)(self._permutation)

    @property
    def epoch_rows(self) -> int:
        """Rows seen in one epoch, counting repetitions."""
        return self._ends[-1]

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.epoch_rows // self._window)

    def total_steps(self, *, epochs: float, max_steps: int | None = None) -> int:
        """`max_steps` when given, else the steps of `epochs` (fractions are rounded up to a step)."""
        if max_steps is not None:
            return max_steps
        whole = int(epochs)
        # The small number keeps 0.7 x 10 = 7.000000000000001 from becoming 8 steps.
        return max(1, whole * self.steps_per_epoch + math.ceil((epochs - whole) * self.steps_per_epoch - 1e-9))

    def epoch_of(self, step: int) -> float:
        """Passes over the data completed when `step` updates are done."""
        whole, steps = divmod(step, self.steps_per_epoch)
        return whole + min(steps * self._window, self.epoch_rows) / self.epoch_rows

    def batch_indices(self, step: int) -> list[list[Place]]:
        """The micro-batches of `step`, counted from 0."""
        epoch, position = divmod(step, self.steps_per_epoch)
        first = position * self._window
        places = [self.place(epoch, slot) for slot in range(first, min(first + self._window, self.epoch_rows))]
        return [places[start : start + self._batch_size] for start in range(0, len(places), self._batch_size)]

    def place(self, epoch: int, slot: int) -> Place:
        """The row at position `slot` of `epoch`."""
        ticket = self._order(self.epoch_rows, "epoch", epoch)[slot]
        dataset = bisect_right(self._ends, ticket)
        quota = self._quotas[dataset]
        drawn = epoch * quota + ticket - (self._ends[dataset] - quota)
        turn, position = divmod(drawn, self._sizes[dataset])
        return dataset, self._order(self._sizes[dataset], f"dataset {dataset}", turn)[position]

    def _permutation(self, size: int, purpose: str, number: int) -> Permutation:
        return Permutation(size, self._seed, purpose, number)
