"""Loss per token over a dataset, and the perplexity that it means."""

from __future__ import annotations

import math

from lowmem.models.loss import LossSums


class LossTally:
    """Sums of losses over batches; the mean weighs every trained token (or every classified example) the same."""

    def __init__(self) -> None:
        self._total = 0.0
        self._count = 0.0

    def add(self, sums: LossSums) -> None:
        self._total += float(sums.total)
        self._count += float(sums.counts.double().sum())

    @property
    def mean(self) -> float:
        """NaN before anything was counted."""
        return self._total / self._count if self._count else math.nan


def perplexity(loss: float) -> float:
    """`exp(loss)`; infinite where that exceeds what a float holds."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
