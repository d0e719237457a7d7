from __future__ import annotations

import random

import pytest

from lowmem.diagnose.pareto import START, Point, common_levels, forgetting_at, front, hypervolume, rank_correlation


def points(seed: int, count: int = 40) -> list[Point]:
    draw = random.Random(seed)
    return [Point(draw.uniform(-1, 3), draw.uniform(-0.5, 2)) for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_what_no_point_beats(seed: int) -> None:
    """Against brute force."""
    given = points(seed) + points(seed)[:3]  # some twice
    kept = front(given)

    def beaten(p: Point) -> bool:
        return any(q != p and q.learning >= p.learning and q.forgetting <= p.forgetting for q in given)

    assert kept == sorted({p for p in given if not beaten(p)})
    assert [p.forgetting for p in kept] == sorted(p.forgetting for p in kept)


def test_forgetting_between_two_points_of_the_front_is_on_the_line_that_joins_them() -> None:
    given = [Point(1.0, 0.1), Point(3.0, 0.5), Point(2.0, 0.9)]
    assert forgetting_at(2.0, given) == pytest.approx(0.3)
    assert forgetting_at(0.5, given) == pytest.approx(0.05), "from the model as it was"
    assert forgetting_at(3.0, given) == 0.5
    assert forgetting_at(3.1, given) is None
    assert forgetting_at(0.5, [Point(1.0, -0.2)]) == -0.2, "forgetting less than nothing beats the start"


def test_levels_are_parts_of_what_all_reach() -> None:
    assert common_levels([[Point(4, 1)], [Point(3, 0), Point(1, 2)]], 3) == [1.0, 2.0, 3.0]
    assert common_levels([[Point(4, 1)], [Point(-1, 1)]], 3) == []


def test_hypervolume_is_the_area_of_the_steps() -> None:
    given = [Point(1.0, 0.5), Point(2.0, 1.0), Point(1.5, 1.9), Point(3.0, 2.0)]
    assert hypervolume(given, 2.0) == pytest.approx(1.0 * 1.5 + 1.0 * 1.0)
    assert hypervolume([START], 2.0) == 0.0


def test_rank_correlation_is_spearmans() -> None:
    assert rank_correlation([1, 2, 3, 4], [1, 4, 9, 100]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert rank_correlation([1, 2, 2, 5], [1, 3, 2, 9]) == pytest.approx(0.9486833)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
    assert rank_correlation([1, 2], [1, 2]) is None
