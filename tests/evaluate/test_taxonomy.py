"""Every trace has exactly one outcome, and attributes as they are defined."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem.evaluate.exact import Question
from lowmem.evaluate.taxonomy import Trace, answers_rightly, first_loop, label, last_parseable
from lowmem.generate.loops.base import Loop

QUESTION = Question((1, 2), "number", ("42",))
FILLER = "hmm and so on "


def trace(text: str, *, thinking: bool = True, cut: bool = False, loop: Loop | None = None) -> Trace:
    """A token per word and its space."""
    words = [len(word) + 1 for word in text.split(" ")]
    ends = list(itertools.accumulate(words))
    return Trace(text, (*ends[:-1], len(text)), thinking, cut, loop)


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("so 40+2. </think> The answer is 42.", "ok"),
        ("so 40+2. </think> 42", "ok"),
        ("The answer is 42. Wait. </think> The answer is 41.", "commitment_failure"),
        ("The answer is 42. Wait, the answer is 42. Wait", "commitment_failure"),
        ("The answer is 42. </think> ", "commitment_failure"),
        ("The answer is 41. </think> 41", "path_finding_failure"),
        ("maybe 42 or 43 and", "path_finding_failure"),
        ("", "path_finding_failure"),
    ],
)
def test_the_outcome_of_a_trace(text: str, outcome: str) -> None:
    assert label(trace(text), QUESTION).outcome == outcome


@given(
    st.lists(st.sampled_from(["The answer is 42. ", "The answer is 7. ", "</think> ", "<think> ", "hm "]), max_size=8)
)
def test_outcomes_say_what_was_right(pieces: list[str]) -> None:
    one = trace("".join(pieces))
    labels = label(one, QUESTION)
    assert (labels.outcome == "ok") == answers_rightly(one, QUESTION)
    if labels.outcome == "commitment_failure":
        assert "42" in one.text
    if labels.outcome == "path_finding_failure":
        assert "42" not in one.text or labels.tokens_to_answer is None


def test_an_unclosed_thought_has_no_final_answer_also_when_the_prompt_began_it() -> None:
    begun, said = trace("The answer is 42."), trace("<think> The answer is 42.", thinking=False)
    assert label(begun, QUESTION).unclosed_think
    assert label(said, QUESTION).unclosed_think
    assert not answers_rightly(begun, QUESTION)
    assert not label(trace("The answer is 42.", thinking=False), QUESTION).unclosed_think


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("The answer is 42. Wait, the answer is 42. Wait", True),
        ("The answer is 42. No, the answer is 41. Hmm", False),
        ("40 and 2 are 42", True),
        ("The answer is 42. </think> The answer is 41.", False),
        ("The answer is 42. </think> ", True),
        ("nothing at all", False),
    ],
)
def test_the_baseline_takes_the_last_answer_that_stands_anywhere(text: str, right: bool) -> None:
    assert last_parseable(trace(text), QUESTION) is right


@pytest.mark.parametrize(("before", "after", "late"), [(1, 600, True), (1, 100, False), (1500, 600, False)])
def test_commitment_is_late_after_512_tokens_and_half_of_what_came_before(before: int, after: int, late: bool) -> None:
    text = f"{'so ' * before}The answer is 42. {'so ' * after}</think> 42"
    assert label(trace(text), QUESTION).delayed_commitment is late


def test_an_answer_outside_a_thought_is_not_late() -> None:
    text = "so </think> The answer is 42. " + "so " * 600
    assert not label(trace(text), QUESTION).delayed_commitment


def test_tokens_to_the_first_answer_are_those_before_it() -> None:
    assert label(trace("a b c The answer is 7. And the answer is 42."), QUESTION).tokens_to_answer == 3
    assert label(trace("a b </think> 42"), QUESTION).tokens_to_answer == 3
    assert label(trace("a b c"), QUESTION).tokens_to_answer is None
    assert label(trace("so 42", thinking=False), QUESTION).tokens_to_answer is None


def test_a_loop_and_a_limit_are_attributes() -> None:
    labels = label(trace(FILLER, cut=True, loop=Loop("tail", 3, 4)), QUESTION)
    assert (labels.loop, labels.hit_limit, labels.outcome) == (True, True, "path_finding_failure")


def test_loops_are_found_in_tokens_that_nobody_watched() -> None:
    found = first_loop([*range(50), *([60, 61, 62, 63] * 40)], lambda token: f" w{token}")
    assert found is not None
    assert (found.onset, found.period) == (50, 4)
    assert first_loop(list(range(300)), lambda token: f" w{token}") is None
