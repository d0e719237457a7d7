"""Which token is drawn: filters against a plain twin, frequencies against probabilities."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lowmem.config.run import GenerationConfig
from lowmem.errors import NonFiniteError
from lowmem.generate import sampling
from lowmem.generate.sampling import choose_tokens, filtered, uniform


def some_logits(rows: int = 5, tokens: int = 50) -> Tensor:
    return torch.randn(rows, tokens, generator=torch.Generator().manual_seed(1)) * 3


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (7, 1.0), (0, 0.8), (12, 0.6), (1, 0.5), (90, 0.9)])
def test_filters_equal_those_of_transformers(top_k: int, top_p: float) -> None:
    logits = some_logits()
    config = GenerationConfig(temperature=0.7, top_k=top_k, top_p=top_p)
    tokens, probabilities = filtered(logits, config)
    ours = torch.zeros(logits.shape, dtype=torch.float64).scatter(1, tokens, probabilities)

    ids = torch.zeros(5, 1, dtype=torch.int64)
    theirs = TemperatureLogitsWarper(0.7)(ids, logits)
    if top_k:
        theirs = TopKLogitsWarper(top_k)(ids, theirs)
    if top_p < 1:
        theirs = TopPLogitsWarper(top_p)(ids, theirs)
    torch.testing.assert_close(ours, theirs.double().softmax(-1), rtol=1e-5, atol=1e-6)


def test_frequencies_follow_the_probabilities() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0, -1.0]])
    trials = 4000
    config = GenerationConfig(temperature=1.0)
    drawn = choose_tokens(logits.expand(trials, -1), config, seeds=range(trials), positions=[0] * trials)
    share = torch.bincount(torch.tensor(drawn), minlength=4) / trials
    # 5 standard deviations of a share: 5 * sqrt(0.25 / 4000) = 0.04; fixed seeds, so no chance of a flake.
    assert (share - logits[0].softmax(-1)).abs().max() < 0.04


def test_temperature_zero_takes_the_likeliest_token() -> None:
    logits = some_logits()
    chosen = choose_tokens(logits, GenerationConfig(), seeds=[0] * 5, positions=[0] * 5)
    assert chosen == logits.argmax(-1).tolist()


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    logits, config = some_logits(1).expand(3, -1), GenerationConfig(temperature=1.5)
    batch = choose_tokens(logits, config, seeds=[4, 5, 4], positions=[9, 9, 9])
    alone = [choose_tokens(logits[:1], config, seeds=[s], positions=[9])[0] for s in (4, 5, 4)]
    assert batch == alone
    many = {choose_tokens(logits[:1], config, seeds=[4], positions=[at])[0] for at in range(20)}
    assert len(many) > 3


def test_uniform_numbers_are_stable_in_range_and_spread() -> None:
    drawn = torch.tensor([uniform(0, at) for at in range(2000)])
    assert uniform(0, 0) == 0.1709622343137528
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) < 1
    assert abs(float(drawn.mean()) - 0.5) < 0.03  # 5 deviations of the mean: 5 * 0.289 / sqrt(2000)


def test_a_removed_token_is_never_drawn_even_at_the_last_edge() -> None:
    logits = torch.tensor([[5.0, 5.0, -torch.inf, -torch.inf]])
    for top_p in (1.0, 0.999999):
        config = GenerationConfig(temperature=1.0, top_p=top_p)
        drawn = {choose_tokens(logits, config, seeds=[s], positions=[0])[0] for s in range(200)}
        assert drawn == {0, 1}


def test_the_largest_uniform_number_draws_the_last_possible_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "uniform", lambda seed, position: 1 - 2.0**-53)
    logits = torch.tensor([[0.1, 0.2, 0.3, -torch.inf]])
    assert choose_tokens(logits, GenerationConfig(temperature=1.0), seeds=[0], positions=[0]) == [2]


def test_nan_logits_are_an_error_that_names_the_position() -> None:
    logits = some_logits(2)
    logits[1, 3] = torch.nan
    with pytest.raises(NonFiniteError, match="NaN at generated token 17"):
        choose_tokens(logits, GenerationConfig(), seeds=[0, 0], positions=[16, 17])
