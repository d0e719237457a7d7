"""Outlines: how they are asked for, given on and judged; who writes them; and the choice of a policy as a table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lowmem.config.generation import GenerationConfig
from lowmem.errors import ConfigError
from lowmem.generate.engine import Engine
from lowmem.generate.fallback import Fallback
from lowmem.generate.generation import Request
from lowmem.generate.outline import (
    Calibration,
    High,
    Wording,
    asking,
    choose_policy,
    following,
    leaks,
    outline_config,
    outline_of,
)
from tests.generate.scripted import ScriptedModel, replies
from tests.models.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
SOME = Calibration(
    problems=50, high=0.9, low=0.3, planned=0.3, loops=0.5, commitment=0.2, path=0.4, leaked=0.0, options=False
)


def high(text: str, prompt: str) -> High:
    """A high precision that says `text` after `prompt`."""
    model: Any = ScriptedModel(replies({"": text}, prompt=len(TOKENIZER(prompt)["input_ids"])))
    return High(model, TOKENIZER, Fallback(model))


def test_the_question_stands_in_both_prompts() -> None:
    assert asking("What is 2+2?").startswith("What is 2+2?\n\n")
    assert following("What is 2+2?", "1. Add.") == "What is 2+2?\n\nOutline:\n1. Add.\n\nFollow the outline."


def test_what_is_put_into_a_wording_is_not_searched_for_places() -> None:
    wording = Wording(ask="{question}", follow="Q {question} / {outline}")
    assert following("the set {outline}", "use {question}", wording) == "Q the set {outline} / use {question}"


def test_an_empty_outline_leaves_the_question_as_it_is() -> None:
    assert following("What is 2+2?", "") == "What is 2+2?"


@pytest.mark.parametrize(
    ("written", "outline"),
    [
        (" 1. Add. \n", "1. Add."),
        ("<think>hm</think>\n1. Add.", "1. Add."),
        ("<think>never closed", ""),
    ],
)
def test_a_thought_is_no_outline(written: str, outline: str) -> None:
    assert outline_of(written) == outline


@pytest.mark.parametrize(
    ("outline", "answer", "question", "leaked"),
    [
        ("1. Add them to get 12.", "12", "5+7", True),
        ("1. Add them to get 112.", "12", "5+7", False),
        ("1. The result is 12.5", "12", "5+7", False),
        ("1. Take 12 first.", "12", "12+0", False),
        ("1. Choose (B)", "b", "which?", True),
        ("1. Be careful.", "B", "which?", False),
    ],
)
def test_an_outline_leaks_an_answer_that_stands_by_itself(
    outline: str, answer: str, question: str, leaked: bool
) -> None:
    assert leaks(outline, answer=answer, question=question) is leaked


def test_outlines_are_short_greedy_and_ask_for_no_outline() -> None:
    asked = outline_config(GenerationConfig(temperature=0.7, outline="on", outline_tokens=9, on_loop="rescue"))
    assert (asked.max_new_tokens, asked.temperature, asked.outline, asked.on_loop) == (9, 0.0, "off", "stop")


def test_the_high_precision_writes_the_outline() -> None:
    prompt = "how to add"
    config = GenerationConfig(outline="on", outline_tokens=40)
    assert high("first one then two", prompt).outlines([prompt], config) == ["first one then two"]


def test_an_outline_ends_with_its_budget() -> None:
    prompt = "how to add"
    config = GenerationConfig(outline="on", outline_tokens=3)
    (short,) = high("first one then two and more", prompt).outlines([prompt], config)
    assert 0 < len(short) < len("first one then two and more")
    assert "first one then two and more".startswith(short)


def test_tokens_of_the_high_precision_are_counted_as_such() -> None:
    prompt = "how to add"
    (done,) = high("one two", prompt).answers([prompt], GenerationConfig(max_new_tokens=20))
    assert set(done.spent.tokens) == {"high"}


def test_without_a_high_precision_there_is_no_outline() -> None:
    model: Any = ScriptedModel(lambda history: 1)
    with pytest.raises(ConfigError, match="written in high precision, and there is none; add --fallback nested"):
        High(model, TOKENIZER, None).outlines(["a"], GenerationConfig(outline="on"))


def test_an_engine_does_not_overlook_that_an_outline_was_asked_for() -> None:
    model: Any = ScriptedModel(lambda history: 1)
    engine = Engine(model, TOKENIZER, slots=1, context=64)
    with pytest.raises(ConfigError, match=r"generation\.outline=on is for `generate` and `chat`"):
        engine.submit(Request((3, 4), GenerationConfig(outline="on", max_new_tokens=4), 0))


@pytest.mark.parametrize(
    ("changes", "policy", "reason"),
    [
        ({"low": 0.89}, "rescue", "low precision answers 89% rightly, high precision 90%"),
        ({"commitment": 0.5}, "rescue", "50% of the traces held the right answer"),
        ({"planned": 0.4}, "planning", r"outlines change the accuracy by \+10 points"),
        ({"planned": 0.35}, "rescue", r"\+5 points"),
        ({"options": True}, "high", "on multiple choice"),
        ({"options": True, "path": 0.2}, "rescue", "20% never did"),
        ({"options": True, "planned": 0.6}, "planning", ""),
        ({}, "rescue", "40% never did"),
    ],
)
def test_the_policy_follows_the_table(changes: dict[str, Any], policy: str, reason: str) -> None:
    import re

    choice = choose_policy(replace(SOME, **changes))
    assert choice.policy == policy
    assert re.search(reason, choice.reason)
