"""What a report says of traces whose text is known."""

from __future__ import annotations

import pytest

from lowmem.config.generation import GenerationConfig
from lowmem.evaluate.exact import Question
from lowmem.evaluate.reasoning import ReasoningReport, solve, summarize
from lowmem.generate.engine import Engine
from lowmem.generate.tokens import TokenTexts
from tests.generate.scripted import ScriptedModel, replies
from tests.models.tiny import tiny_tokenizer

LOOP = "Wait, let me check that once more, since it may be wrong. "
TOLD = {
    10: "<think>Twelve and three. </think>\nThe answer is 15.",
    11: "<think>Twelve and three. The answer is 15. " + LOOP * 40,
    12: "<think>Twelve and three are 14. </think>\nThe answer is 14.",
}
QUESTIONS = [Question((first, 20), "number", ("15",)) for first in TOLD]


def script(history: list[int]) -> int:
    return replies({"": TOLD[history[0]]}, prompt=2)(history)


@pytest.fixture(scope="module")
def rescued() -> ReasoningReport:
    return report(GenerationConfig(max_new_tokens=600, on_loop="rescue", commit_tokens=60))


def report(config: GenerationConfig) -> ReasoningReport:
    tokenizer = tiny_tokenizer()
    engine = Engine(ScriptedModel(script), tokenizer, slots=2, context=1200)
    return summarize(solve(engine, QUESTIONS, config, TokenTexts(tokenizer)))


def test_outcomes_and_rates_are_of_the_raw_traces(rescued: ReasoningReport) -> None:
    assert rescued.outcomes == {"ok": 1, "commitment_failure": 1, "path_finding_failure": 1}
    assert (rescued.loop_rate, rescued.hit_limit_rate, rescued.unclosed_rate) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert sum(rescued.loops_by_rule.values()) == 1
    assert rescued.rescues_by_status == {"rescued_early_answer": 1}


def test_every_policy_has_its_row_beside_the_baseline(rescued: ReasoningReport) -> None:
    raw, baseline, rescue = rescued.rows
    assert [row.policy for row in rescued.rows] == ["raw", "last_parseable", "rescue"]
    assert (raw.accuracy, baseline.accuracy, rescue.accuracy) == pytest.approx((1 / 3, 2 / 3, 2 / 3))
    assert (raw.accuracy_troubled, rescue.accuracy_troubled) == (0.0, 1.0)
    assert raw.accuracy_other == rescue.accuracy_other == 0.5


def test_a_baseline_costs_what_the_raw_trace_costs_and_a_rescue_what_it_decoded(rescued: ReasoningReport) -> None:
    raw, baseline, rescue = rescued.rows
    assert baseline.tokens_per_problem == raw.tokens_per_problem
    assert rescue.tokens_per_problem < raw.tokens_per_problem
    assert raw.tokens_per_correct == pytest.approx(3 * raw.tokens_per_problem)
    assert rescue.tokens_per_correct == pytest.approx(1.5 * rescue.tokens_per_problem)
    assert rescue.high_precision_share == 0.0


def test_left_alone_there_are_two_rows_and_the_same_labels(rescued: ReasoningReport) -> None:
    alone = report(GenerationConfig(max_new_tokens=600))
    assert [row.policy for row in alone.rows] == ["raw", "last_parseable"]
    assert (alone.outcomes, alone.loops_by_rule) == (rescued.outcomes, rescued.loops_by_rule)
    assert alone.rows[0].tokens_per_problem == rescued.rows[0].tokens_per_problem


def test_without_a_right_answer_there_is_no_cost_of_one() -> None:
    tokenizer = tiny_tokenizer()
    engine = Engine(ScriptedModel(script), tokenizer, slots=1, context=1200)
    found = summarize(solve(engine, QUESTIONS[2:], GenerationConfig(max_new_tokens=80), TokenTexts(tokenizer)))
    assert (found.rows[0].tokens_per_correct, found.rows[0].seconds_per_correct) == (None, None)
    assert found.rows[0].accuracy_troubled is None
