from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem.data.permutation import Permutation


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(0, 2**63), st.text(max_size=4))
def test_every_number_comes_once(n: int, seed: int, purpose: str) -> None:
    order = Permutation(n, seed, purpose)
    assert sorted(order[i] for i in range(n)) == list(range(n))


def test_equal_keys_give_equal_orders_and_others_do_not() -> None:
    def order(*key: int | str) -> list[int]:
        permutation = Permutation(50, *key)
        return [permutation[i] for i in range(len(permutation))]

    assert order(1, "epoch", 2) == order(1, "epoch", 2)
    assert len({tuple(order(seed, "epoch", epoch)) for seed in range(5) for epoch in range(5)}) == 25


def test_order_is_the_same_in_every_version() -> None:
    """A run resumed under another version of anything must see the same rows."""
    order = Permutation(10, 42, "epoch", 0)
    assert [order[i] for i in range(10)] == RECORDED


RECORDED = [1, 5, 6, 8, 2, 0, 9, 3, 4, 7]


def test_each_number_is_equally_likely_at_each_position() -> None:
    """2000 keys, 5 x 5 cells of mean 400: the chi-square of 16 degrees of freedom exceeds 39.3 once in 1000 tries;
    the keys are fixed, so this test always gives the same result."""
    counts = Counter((i, Permutation(5, key)[i]) for key in range(2000) for i in range(5))
    assert sum((counts[i, j] - 400) ** 2 / 400 for i in range(5) for j in range(5)) < 39.3


def test_neighbours_are_torn_apart() -> None:
    order = Permutation(10_000, 7)
    steps = [abs(order[i + 1] - order[i]) for i in range(2000)]
    # The mean distance of two uniform numbers is n / 3; the mean of 2000 has a standard error of 0.53 % of n.
    assert abs(sum(steps) / len(steps) - 10_000 / 3) < 10_000 * 0.025


def test_far_positions_of_huge_orders_cost_nothing() -> None:
    assert 0 <= Permutation(10**12, 3)[10**12 - 1] < 10**12


def test_empty_order_is_refused() -> None:
    with pytest.raises(ValueError, match="a permutation of 0 numbers does not exist"):
        Permutation(0)


def test_position_outside_is_refused() -> None:
    with pytest.raises(IndexError, match="position 3 is outside a permutation of 3"):
        Permutation(3)[3]
