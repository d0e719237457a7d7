"""Learning against forgetting: which points nothing beats, and forgetting at equal learning.

A larger learning rate learns more and forgets more, so methods are not compared at equal rates: over its whole grid
each traces a front, and two fronts are read at the same learning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Point:
    """How much was learned of the new (more is better), and forgotten of the old (less is better)."""

    learning: float
    forgetting: float


START = Point(0.0, 0.0)
"""The model as it was: learning rate zero."""


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats or equals in both, by rising learning; forgetting rises along with it."""
    kept: list[Point] = []
    for point in sorted(set(points), key=lambda p: (-p.learning, p.forgetting)):
        if not kept or point.forgetting < kept[-1].forgetting:
            kept.append(point)
    return kept[::-1]


def forgetting_at(learning: float, points: Sequence[Point]) -> float | None:
    """Forgetting at `learning`, read off the front of `points` by linear interpolation; None above its end."""
    joined = front([START, *points])
    if learning > joined[-1].learning:
        return None
    if learning <= joined[0].learning:
        return joined[0].forgetting
    right = next(index for index, point in enumerate(joined) if point.learning >= learning)
    low, high = joined[right - 1], joined[right]
    share = (learning - low.learning) / (high.learning - low.learning)
    return low.forgetting + share * (high.forgetting - low.forgetting)


def common_levels(groups: Sequence[Sequence[Point]], count: int) -> list[float]:
    """`count` equal parts of the learning that every group reaches; none where one learned nothing."""
    reached = min((max((p.learning for p in points), default=0.0) for points in groups), default=0.0)
    return [reached * part / count for part in range(1, count + 1)] if reached > 0 else []


def hypervolume(points: Sequence[Point], worst: float) -> float:
    """Area between the front of `points` and the corner of no learning and forgetting `worst`: more is better."""
    area, left = 0.0, 0.0
    for point in front(points):
        if point.learning > left and point.forgetting < worst:
            area += (point.learning - left) * (worst - point.forgetting)
            left = point.learning
    return area


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's: 1 where both rise together; None with fewer than three pairs or where one never changes."""
    if len(one) < 3:
        return None
    first, second = _ranks(one), _ranks(other)
    mean = (len(one) - 1) / 2
    covariance = sum((a - mean) * (b - mean) for a, b in zip(first, second, strict=True))
    spread = [sum((a - mean) ** 2 for a in ranks) for ranks in (first, second)]
    return None if 0 in spread else float(covariance / (spread[0] * spread[1]) ** 0.5)


def _ranks(values: Sequence[float]) -> list[float]:
    """From 0 up; equal values share the mean of their places."""
    return [sum(v < value for v in values) + (sum(v == value for v in values) - 1) / 2 for value in values]
