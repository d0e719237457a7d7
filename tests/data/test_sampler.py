from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem.data.sampler import Sampler


def _rows(sampler: Sampler, steps: range) -> list[tuple[int, int]]:
    return [place for step in steps for batch in sampler.batch_indices(step) for place in batch]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_every_row_comes_once_per_epoch(size: int, batch_size: int, accumulation: int, seed: int) -> None:
    sampler = Sampler([size], [1.0], batch_size=batch_size, accumulation=accumulation, seed=seed)
    per_epoch = sampler.steps_per_epoch
    for epoch in range(3):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        assert sorted(_rows(sampler, steps)) == [(0, row) for row in range(size)]
        windows = [sampler.batch_indices(step) for step in steps]
        assert all(len(batch) <= batch_size for window in windows for batch in window)
        assert all(len(window) == accumulation for window in windows[:-1])
        assert all(window and all(window) for window in windows)


def test_epochs_are_shuffled_differently_and_seeds_too() -> None:
    def order(seed: int, epoch: int) -> list[tuple[int, int]]:
        sampler = Sampler([40], [1.0], batch_size=4, accumulation=1, seed=seed)
        return _rows(sampler, range(10 * epoch, 10 * epoch + 10))

    orders = [order(seed, epoch) for seed in (1, 2) for epoch in (0, 1)]
    assert len(set(map(tuple, orders))) == 4
    assert order(1, 1) == orders[1]


def test_a_step_is_the_same_whether_asked_alone_or_in_order() -> None:
    walked = Sampler([30, 7], [1.0, 2.5], batch_size=3, accumulation=2, seed=5)
    steps = [walked.batch_indices(step) for step in range(60)]
    assert Sampler([30, 7], [1.0, 2.5], batch_size=3, accumulation=2, seed=5).batch_indices(47) == steps[47]


def test_weight_two_shows_each_row_twice_and_a_half_shows_halves_in_turn() -> None:
    sampler = Sampler([10, 8], [2.0, 0.5], batch_size=4, accumulation=1, seed=0)
    assert sampler.epoch_rows == 24
    per_epoch = sampler.steps_per_epoch
    for epoch in (0, 2):
        first = Counter(_rows(sampler, range(epoch * per_epoch, (epoch + 1) * per_epoch)))
        second = Counter(_rows(sampler, range((epoch + 1) * per_epoch, (epoch + 2) * per_epoch)))
        assert all(first[0, row] == second[0, row] == 2 for row in range(10))
        assert sum(first[1, row] for row in range(8)) == 4
        assert all(first[1, row] + second[1, row] == 1 for row in range(8))


def test_weight_far_below_one_row_still_shows_one() -> None:
    sampler = Sampler([100, 3], [1.0, 0.01], batch_size=8, accumulation=1, seed=0)
    seen = Counter(_rows(sampler, range(3 * sampler.steps_per_epoch)))
    assert [seen[1, row] for row in range(3)] == [1, 1, 1]


def test_datasets_are_mixed_and_not_one_after_the_other() -> None:
    sampler = Sampler([50, 50], [1.0, 1.0], batch_size=10, accumulation=1, seed=3)
    first_half = Counter(dataset for dataset, _ in _rows(sampler, range(5)))
    # Of 50 rows drawn from 100 without repetition, those of one dataset have mean 25 and deviation 2.5.
    assert abs(first_half[0] - 25) < 10


@pytest.mark.parametrize(
    ("epochs", "max_steps", "steps"),
    [(1.0, None, 10), (3.0, None, 30), (0.7, None, 7), (2.35, None, 24), (0.01, None, 1), (5.0, 3, 3)],
)
def test_total_steps_rounds_fractions_of_an_epoch_up(epochs: float, max_steps: int | None, steps: int) -> None:
    sampler = Sampler([77], [1.0], batch_size=4, accumulation=2, seed=0)
    assert sampler.steps_per_epoch == 10
    assert sampler.total_steps(epochs=epochs, max_steps=max_steps) == steps


def test_epoch_counts_rows_also_where_the_last_window_is_partial() -> None:
    sampler = Sampler([10], [1.0], batch_size=4, accumulation=1, seed=0)
    assert [sampler.epoch_of(step) for step in (0, 1, 2, 3, 4, 6)] == [0.0, 0.4, 0.8, 1.0, 1.4, 2.0]
