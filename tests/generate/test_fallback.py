"""Rows that fall back to their weights' second planes are answered as both planes answer; other rows never know."""

from __future__ import annotations

import pytest
import torch

from lowmem.config.generation import GenerationConfig
from lowmem.errors import ConfigError
from lowmem.generate.fallback import Fallback, engine_with, fallback_slots, nested_precisions
from lowmem.generate.generate import run_requests, stream
from lowmem.generate.generation import Generation, Request
from lowmem.quant.linear import at_precision
from tests.models.tiny import tiny_model, tiny_tokenizer
from tests.quantized import packed

CONFIG = GenerationConfig(max_new_tokens=20, on_loop="rescue", commit_tokens=6)
TOKENIZER = tiny_tokenizer()
STUCK = Request(tuple(TOKENIZER("<think>the cat")["input_ids"]), CONFIG, 0)
OTHERS = [Request((10 + n, 20, 30 + n), CONFIG, n) for n in range(5)]


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return packed(tiny_model("llama"), "nested").eval()


def run(model: torch.nn.Module, requests: list[Request], fallback: Fallback | None, slots: int = 4) -> list[Generation]:
    return run_requests(engine_with(model, TOKENIZER, fallback, slots=slots, context=160), requests)


def test_a_request_that_falls_back_gets_the_answer_of_both_planes(model: torch.nn.Module) -> None:
    (again,) = run(model, [STUCK], Fallback())
    (full,) = run(model, [STUCK], None)
    with at_precision(model, "base"):
        (low,) = run(model, [STUCK], None)
    assert again.rescue is not None
    assert (again.tokens, again.text) == (full.tokens, full.text)
    assert again.text != low.text
    assert again.spent.tokens["low"] == low.spent.tokens["low"]
    assert again.spent.tokens["high"] == full.spent.tokens["low"]


def test_a_fallback_changes_no_other_row(model: torch.nn.Module) -> None:
    together = run(model, [OTHERS[0], STUCK, *OTHERS[1:], STUCK], Fallback())
    with at_precision(model, "base"):
        alone = [run(model, [request], None, slots=4)[0] for request in OTHERS]
    others = [one for one in together if "high" not in one.spent.tokens]
    assert len(others) == len(OTHERS)
    assert [one.tokens for one in others] == [one.tokens for one in alone]
    first, second = (one for one in together if "high" in one.spent.tokens)
    assert first.tokens == second.tokens


def test_a_second_model_answers_where_the_first_does_not(model: torch.nn.Module) -> None:
    other = tiny_model("llama").eval()
    with at_precision(model, "base"):
        (again,) = run(model, [STUCK], Fallback(other))
    (alone,) = run(other, [STUCK], None)
    assert "high" in again.spent.tokens
    assert again.tokens == alone.tokens


def test_the_layers_are_as_they_were_after_decoding(model: torch.nn.Module) -> None:
    before = [getattr(one, "precision", None) for one in model.modules()]
    run(model, [STUCK], Fallback())
    assert [getattr(one, "precision", None) for one in model.modules()] == before


def test_a_streamed_answer_that_may_be_decoded_anew_comes_whole(model: torch.nn.Module) -> None:
    (again,) = run(model, [STUCK], Fallback(), slots=1)
    assert list(stream(model, TOKENIZER, STUCK.prompt, CONFIG, fallback=Fallback())) == [again.text]


def test_weights_without_second_planes_are_refused() -> None:
    with pytest.raises(ConfigError, match="no layer of the model has two planes"):
        nested_precisions(packed(tiny_model("llama")))


@pytest.mark.parametrize(("slots", "again"), [(1, 1), (4, 1), (8, 2)])
def test_a_quarter_of_the_slots_may_fall_back_at_once(slots: int, again: int) -> None:
    assert fallback_slots(slots) == again
