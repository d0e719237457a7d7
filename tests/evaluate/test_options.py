"""Accuracy over options, and what the median threshold repairs."""

from __future__ import annotations

import pytest
import torch

from lowmem.evaluate.options import OptionTally, above_median


def tally(scores: list[list[float]], gold: list[int], batch: int = 2) -> dict[str, float]:
    tally = OptionTally()
    for start in range(0, len(gold), batch):
        tally.add(torch.tensor(scores[start : start + batch]), torch.tensor(gold[start : start + batch]))
    return tally.metrics()


def test_accuracy_counts_the_highest_score_over_all_batches() -> None:
    scores = [[1.0, 2.0, 0.0], [3.0, 2.0, 1.0], [0.0, 0.5, 1.0]]
    assert tally(scores, [1, 0, 1]) == {"accuracy": pytest.approx(2 / 3)}


def test_a_biased_model_that_knows_the_order_is_right_at_the_median() -> None:
    # Every score prefers option 0, and still the lead of option 1 orders the examples perfectly.
    scores = [[0.0, -1.0], [0.0, -9.0], [0.0, -2.0], [0.0, -8.0]]
    assert tally(scores, [1, 0, 1, 0]) == {"accuracy": 0.5, "accuracy_median_threshold": 1.0}


def test_a_model_that_knows_nothing_stays_at_half_at_the_median() -> None:
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(2000, 2, generator=draw).tolist()
    gold = torch.randint(2, (2000,), generator=draw).tolist()
    # 5 deviations of a share: 5 * 0.5 / sqrt(2000) = 0.056
    assert abs(tally(scores, gold)["accuracy_median_threshold"] - 0.5) < 0.056


def test_the_median_splits_odd_and_even_sets() -> None:
    assert above_median(torch.tensor([5.0, 1.0, 3.0])).tolist() == [1, 0, 0]
    assert above_median(torch.tensor([5.0, 1.0, 3.0, 4.0])).tolist() == [1, 0, 0, 1]
    assert above_median(torch.tensor([2.0, 2.0])).tolist() == [0, 0]


def test_examples_with_fewer_options_have_no_median_threshold() -> None:
    assert tally([[1.0, -torch.inf], [1.0, 2.0]], [0, 1]) == {"accuracy": 1.0}


def test_nothing_tallied_gives_no_metrics() -> None:
    assert OptionTally().metrics() == {}
