"""The rescue bed: its documents are right, its traces are read rightly, and its numbers are what they say."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from examples.rescue import stories
from examples.rescue.problems import AGREEING, FAMILIES, HELD_OUT, TESTED, TRAINED, document, problem
from examples.rescue.rows import policy_row, rate_row
from examples.rescue.traces import final_answer, in_trouble
from lowmem.data.procedural import CHARACTERS, END_THINK, THINK
from lowmem.generate.answers import announced

DOCUMENTS = [document(index) for index in range(120)]
WORKED = [text for text in DOCUMENTS if THINK in text]


def row(**changes: Any) -> dict[str, Any]:
    quiet = {"right": True, "last_right": True, "loop": None, "limit": False, "unclosed": False}
    return quiet | {"tokens": 100, "high_tokens": 0, "seconds": 1.0} | changes


def test_a_document_is_the_same_every_time_and_in_the_model_s_characters() -> None:
    assert [document(index) for index in range(120)] == DOCUMENTS
    plain = "".join(DOCUMENTS).replace(THINK, "").replace(END_THINK, "")
    assert set(plain) <= set(CHARACTERS) | {"\n"}


def test_every_step_of_a_thought_is_true() -> None:
    for text in WORKED:
        for left, right in re.findall(r"(?<=[:;])([\d+]+)=(\d+);", text):
            assert sum(map(int, left.split("+"))) == int(right), text


def test_a_thought_ends_after_two_checks_that_agree() -> None:
    for text in WORKED:
        verdicts = re.findall(r"(same|differs)\n", text)
        assert verdicts[-AGREEING:] == ["same"] * AGREEING
        said = announced(text)
        assert said[-1].value == said[-2].value


def test_some_passes_slip_and_some_thoughts_check_once_more() -> None:
    assert any("differs" in text for text in WORKED)
    lengths = {len(re.findall("check ", text)) for text in WORKED if "differs" not in text}
    assert lengths > {2, 3}


def test_some_documents_plan() -> None:
    asked = [text for text in DOCUMENTS if THINK not in text]
    assert asked
    assert all(re.search(r"=\?\nplan: .* \d checks$", text) for text in asked)
    assert any("\nplan:" in text for text in WORKED)


def test_no_test_problem_is_trained_on() -> None:
    trained = {problem(family, index, TRAINED).question for family in FAMILIES for index in range(300)}
    assert not trained & {problem(family, index, TESTED).question for family in FAMILIES for index in range(300)}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>1+1:\nanswer: 2\n</think>\nfinal answer: 2", "2"),
        ("<think>1+1:\nanswer: 2\n", None),
        ("<think>hm\n</think>\n\nanswer: 2", "2"),
        ("<think>hm\n</think>\n(uncommitted guess) 17", "17"),
        ("<think>hm\n</think>\nno answer was found.", None),
    ],
)
def test_the_final_answer_stands_after_the_thought(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize("trouble", [{"loop": ["tail", 1, 2]}, {"limit": True}, {"unclosed": True}])
def test_trouble_is_a_loop_the_limit_or_an_open_thought(trouble: dict[str, Any]) -> None:
    assert in_trouble(row(**trouble))
    assert not in_trouble(row())


def test_rows_say_what_was_measured() -> None:
    raw = [row(), row(right=False, limit=True), row(right=False, unclosed=True, limit=True), row(loop=["tail", 1, 2])]
    rescued = [row(), row(tokens=50, high_tokens=25), row(right=False), row()]
    assert rate_row("2 bit", raw) == ["2 bit", 4, "50.0 %", "25.0 %", "25.0 %", "50.0 %", "75.0 %", 100]
    assert policy_row("rescue", rescued, raw) == ["rescue", "75.0 %", "66.7 %", "100.0 %", 88, "1.33", "7.1 %"]
    assert policy_row("full precision", rescued, raw)[-1] == "100.0 %"


STORIES = [stories.document(index, TRAINED) for index in range(300)]


def test_a_story_s_answer_is_what_the_changes_come_to() -> None:
    for index in range(200):
        one = stories.asked(index, TESTED)
        start, *changes = re.findall(
            r"(has|finds|buys|wins|picks up|gets|gives away|loses|sells|drops) (\d+)", one.question
        )
        total = int(start[1]) + sum(int(much) * (1 if what in stories.GAINS else -1) for what, much in changes)
        assert str(total) == one.answer
        assert total >= 0


def test_sums_of_a_told_story_are_wrong_only_now_and_then_and_its_end_is_right() -> None:
    wrong = total = 0
    for index, text in enumerate(STORIES):
        for left, sign, right, result in re.findall(r": (\d+)([+-])(\d+)=(-?\d+)\.", text):
            total += 1
            wrong += int(left) + (int(right) if sign == "+" else -int(right)) != int(result)
        if THINK in text:
            assert final_answer(text) == stories.asked(index, TRAINED).answer
    assert 0 < wrong / total < stories.SLIP


def test_a_thought_about_a_story_ends_when_two_tellings_agree_or_later() -> None:
    tellings = set()
    for text in STORIES:
        if THINK not in text:
            continue
        said = [one.value for one in announced(text.split(END_THINK)[0])]
        assert said[-1] == said[-2]
        tellings.add(len(said))
        for before, now, verdict in zip(said, said[1:], re.findall(r"That is (not )?what I had", text), strict=False):
            assert (before == now) == (verdict == ""), text
    assert tellings >= {2, 3, 4}


def test_no_story_that_is_asked_was_trained_on() -> None:
    numbers = [
        {(told.start, *(change for _, change in told.events)) for told in (stories.story(n, seed) for n in range(800))}
        for seed in (TRAINED, HELD_OUT, TESTED)
    ]
    assert not numbers[0] & numbers[1]
    assert not numbers[0] & numbers[2]
    assert not numbers[1] & numbers[2]
