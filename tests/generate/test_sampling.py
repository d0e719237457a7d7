"""Which token is drawn: filters and penalties against a plain twin, frequencies against probabilities."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lowmem.config.generation import GenerationConfig
from lowmem.errors import NonFiniteError
from lowmem.generate import sampling
from lowmem.generate.sampling import choose_token, filtered, penalized, prolonged, uniform


def some_logits(tokens: int = 50, *, seed: int = 1) -> Tensor:
    return torch.randn(tokens, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [(0, 1.0, 0), (7, 1.0, 0), (0, 0.8, 0), (12, 0.6, 0), (1, 0.5, 0), (90, 0.9, 0), (0, 1.0, 0.1), (20, 0.9, 0.05)],
)
def test_filters_equal_those_of_transformers(top_k: int, top_p: float, min_p: float) -> None:
    logits = some_logits()
    config = GenerationConfig(temperature=0.7, top_k=top_k, top_p=top_p, min_p=min_p)
    tokens, probabilities = filtered(logits, config)
    ours = torch.zeros(50, dtype=torch.float64).scatter(0, tokens, probabilities)

    ids = torch.zeros(1, 1, dtype=torch.int64)
    theirs = TemperatureLogitsWarper(0.7)(ids, logits[None])
    if top_k:
        theirs = TopKLogitsWarper(top_k)(ids, theirs)
    if top_p < 1:
        theirs = TopPLogitsWarper(top_p)(ids, theirs)
    if min_p:
        theirs = MinPLogitsWarper(min_p)(ids, theirs)
    torch.testing.assert_close(ours, theirs[0].double().softmax(-1), rtol=1e-5, atol=1e-6)


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    logits, prompt, tokens = some_logits(), [3, 4, 4], [7, 9]
    ours = penalized(logits, GenerationConfig(repetition_penalty=1.3), prompt=prompt, tokens=tokens)
    theirs = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([prompt + tokens]), logits[None].clone())[0]
    assert torch.equal(ours, theirs)


def test_presence_and_frequency_count_what_was_generated_and_not_the_prompt() -> None:
    config = GenerationConfig(presence_penalty=0.5, frequency_penalty=0.25)
    off = some_logits() - penalized(some_logits(), config, prompt=[1, 2], tokens=[5, 6, 5, 5])
    expected = torch.zeros(50)
    expected[5], expected[6] = 0.5 + 3 * 0.25, 0.5 + 0.25
    torch.testing.assert_close(off, expected)


@pytest.mark.parametrize("length", [2, 3, 10])
def test_dry_grows_with_the_length_of_the_repeated_end(length: int) -> None:
    end = list(range(10, 10 + length))
    config = GenerationConfig(dry_multiplier=0.8)
    off = some_logits() - penalized(some_logits(), config, prompt=[1, *end, 30, 2], tokens=end)
    assert float(off[30]) == pytest.approx(0.8 * 1.75 ** (length - 2), rel=1e-4)
    assert int((off != 0).sum()) == 1


@given(st.lists(st.integers(0, 3), max_size=40))
def test_prolonged_ends_are_found_as_by_comparing_every_place(history: list[int]) -> None:
    expected: dict[int, int] = {}
    for at in range(len(history) - 1):
        length = 0
        while length <= at and history[at - length] == history[len(history) - 1 - length]:
            length += 1
        if length >= 2:
            expected[history[at + 1]] = max(length, expected.get(history[at + 1], 0))
    assert prolonged(history, 2) == expected


def test_without_penalties_logits_stay_the_same_tensor() -> None:
    logits = some_logits()
    assert penalized(logits, GenerationConfig(), prompt=[1], tokens=[2, 3]) is logits


def test_frequencies_follow_the_probabilities() -> None:
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0])
    trials = 4000
    config = GenerationConfig(temperature=1.0)
    drawn = [choose_token(logits, config, seed=seed) for seed in range(trials)]
    share = torch.bincount(torch.tensor(drawn), minlength=4) / trials
    # 5 standard deviations of a share: 5 * sqrt(0.25 / 4000) = 0.04; fixed seeds, so no chance of a flake.
    assert (share - logits.softmax(-1)).abs().max() < 0.04


def test_temperature_zero_takes_the_likeliest_token() -> None:
    for seed in range(5):
        logits = some_logits(seed=seed)
        assert choose_token(logits, GenerationConfig(), seed=0) == int(logits.argmax())


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    config, nine = GenerationConfig(temperature=1.5), list(range(9))

    def draw(seed: int, tokens: list[int]) -> int:
        return choose_token(some_logits(), config, seed=seed, tokens=tokens)

    assert draw(4, nine) == draw(4, nine[::-1])
    assert len({draw(4, list(range(at))) for at in range(20)}) > 3
    assert len({draw(seed, nine) for seed in range(20)}) > 3


def test_uniform_numbers_are_stable_in_range_and_spread() -> None:
    drawn = torch.tensor([uniform(0, at) for at in range(2000)])
    assert uniform(0, 0) == 0.1709622343137528
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) < 1
    assert abs(float(drawn.mean()) - 0.5) < 0.03  # 5 deviations of the mean: 5 * 0.289 / sqrt(2000)


@pytest.mark.parametrize("more", [{}, {"top_p": 0.999999}, {"min_p": 0.01}])
def test_a_removed_token_is_never_drawn_even_at_the_last_edge(more: dict[str, Any]) -> None:
    logits = torch.tensor([5.0, 5.0, -torch.inf, -torch.inf])
    config = GenerationConfig(temperature=1.0, **more)
    assert {choose_token(logits, config, seed=seed) for seed in range(200)} == {0, 1}


def test_the_largest_uniform_number_draws_the_last_possible_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "uniform", lambda seed, position: 1 - 2.0**-53)
    logits = torch.tensor([0.1, 0.2, 0.3, -torch.inf])
    assert choose_token(logits, GenerationConfig(temperature=1.0), seed=0) == 2


def test_nan_logits_are_an_error_that_names_the_position() -> None:
    logits = some_logits()
    logits[3] = torch.nan
    with pytest.raises(NonFiniteError, match="NaN at generated token 17"):
        choose_token(logits, GenerationConfig(), seed=0, tokens=[5] * 17)
