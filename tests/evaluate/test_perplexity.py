"""Means of losses over batches of different weight."""

from __future__ import annotations

import math

import pytest
import torch

from lowmem.evaluate.perplexity import LossTally, perplexity
from lowmem.models.loss import LossSums


def test_every_token_weighs_the_same_whatever_its_batch() -> None:
    tally = LossTally()
    tally.add(LossSums(torch.tensor([6.0, 1.0]), torch.tensor([3.0, 1.0])))
    tally.add(LossSums(torch.tensor([5.0]), torch.tensor([2.0])))
    assert tally.mean == pytest.approx(12 / 6)


def test_nothing_counted_is_not_a_number() -> None:
    assert math.isnan(LossTally().mean)


def test_perplexity_is_the_exponential_or_infinite() -> None:
    assert perplexity(math.log(7)) == pytest.approx(7)
    assert perplexity(1e6) == math.inf
    assert math.isnan(perplexity(math.nan))
