"""Accuracy of choosing between options by their score.

Zero-shot, a model prefers one answer for the sound of it, whatever the example says. For two options
`accuracy_median_threshold` takes that preference out: option 1 is chosen where its lead over option 0 is above the
median lead of **the very set that is evaluated**. It assumes that both answers are about equally frequent, and it
needs the whole set before it can judge one example: a measure of what the scores know, not a classifier to ship.
"""

from __future__ import annotations

import torch
from torch import Tensor


class OptionTally:
    """Scores and right answers over batches."""

    def __init__(self) -> None:
        self._scores: list[Tensor] = []
        self._gold: list[Tensor] = []

    def add(self, scores: Tensor, gold: Tensor) -> None:
        """`scores` (B, K), -inf where an example has fewer options; `gold` (B,)."""
        self._scores.append(scores.detach().double().cpu())
        self._gold.append(gold.cpu())

    def metrics(self) -> dict[str, float]:
        """`accuracy`, and `accuracy_median_threshold` when every example has two options."""
        if not self._scores:
            return {}
        scores, gold = torch.cat(self._scores), torch.cat(self._gold)
        found = {"accuracy": _share(scores.argmax(dim=1) == gold)}
        if scores.shape[1] == 2 and bool(scores.isfinite().all()):
            found["accuracy_median_threshold"] = _share(above_median(scores[:, 1] - scores[:, 0]) == gold)
        return found


def above_median(leads: Tensor) -> Tensor:
    """1 where a lead exceeds the median of all (for an even number: the mean of the middle two), else 0."""
    ordered = leads.sort().values
    middle = (ordered[(len(leads) - 1) // 2] + ordered[len(leads) // 2]) / 2
    return (leads > middle).long()


def _share(right: Tensor) -> float:
    return float(right.double().mean())
