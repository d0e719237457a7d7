"""What reasoning costs and where it is lost: every trace labelled, beside the accuracy that its reader could have had.

Three ways to take the same problems, as rows of one report:

| policy | the answer is | it costs |
|---|---|---|
| raw | what stands after the thought when decoding is left alone | the whole trace |
| last_parseable | the last answer that stands anywhere in the raw trace | the same |
| stop, rescue | what the engine's policy for loops and open thoughts makes of it | all that was decoded, cut or not |

`last_parseable` is the baseline that a policy must beat: it costs nothing but patience. Labels and rates are of the raw
traces. A trace on which the policy had nothing to do *is* the raw trace (same tokens, same seed) and is decoded once.
Seconds are each request's share of the steps that it took part in, so they depend on how many are decoded together.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from lowmem.config.generation import GenerationConfig
from lowmem.evaluate.exact import Question
from lowmem.evaluate.taxonomy import Labels, Trace, answers_rightly, label, last_parseable, trace_of
from lowmem.generate.engine import Engine
from lowmem.generate.generate import run_requests
from lowmem.generate.generation import Generation, Request

Policy = Literal["raw", "last_parseable", "stop", "rescue"]
HIGH = "high"
"""The precision whose share of tokens is reported."""


@dataclass(frozen=True)
class Solved:
    """One problem under one policy. `tokens` and `seconds` by precision; `status` of a rescue that took place."""

    policy: Policy
    trace: Trace
    labels: Labels
    right: bool
    tokens: dict[str, int]
    seconds: dict[str, float]
    status: str | None

    @property
    def troubled(self) -> bool:
        """Whether the trace loops, was cut off, or never ends its thought."""
        return self.labels.loop or self.labels.hit_limit or self.labels.unclosed_think


@dataclass(frozen=True)
class Row:
    """One policy over all problems. Costs per correct answer are None without one; accuracies of an empty part too."""

    policy: Policy
    accuracy: float
    accuracy_troubled: float | None
    """On the problems whose raw trace loops, was cut off, or never ends its thought."""
    accuracy_other: float | None
    tokens_per_problem: float
    tokens_per_correct: float | None
    seconds_per_problem: float
    seconds_p95: float
    seconds_per_correct: float | None
    high_precision_share: float
    """Share of the decoded tokens that the high precision decoded."""


@dataclass(frozen=True)
class ReasoningReport:
    """Rates and outcomes of the raw traces, and a row per policy."""

    problems: int
    outcomes: dict[str, int]
    loop_rate: float
    hit_limit_rate: float
    unclosed_rate: float
    delayed_rate: float
    median_tokens: float
    median_tokens_to_answer: float | None
    loops_by_rule: dict[str, int]
    rescues_by_status: dict[str, int]
    rows: tuple[Row, ...]


def solve(
    engine: Engine, questions: Sequence[Question], config: GenerationConfig, text_of: Callable[[int], str]
) -> list[list[Solved]]:
    """Every question under every policy, a list per policy: raw, last_parseable, and that of `config` if it has one."""
    ruled = _run(engine, questions, config)
    raw = list(ruled)
    if config.on_loop != "continue":
        left_alone = config.model_copy(update={"on_loop": "continue"})
        again = [n for n, one in enumerate(ruled) if one.loop is not None or one.rescue is not None]
        for n, one in zip(again, _run(engine, [questions[n] for n in again], left_alone), strict=True):
            raw[n] = one
    traces = [trace_of(one, text_of) for one in raw]
    found = [
        [_solved("raw", *parts, right=answers_rightly) for parts in zip(raw, traces, questions, strict=True)],
        [_solved("last_parseable", *parts, right=last_parseable) for parts in zip(raw, traces, questions, strict=True)],
    ]
    if config.on_loop != "continue":
        ends = [trace_of(one, text_of) for one in ruled]
        parts = zip(ruled, ends, questions, strict=True)
        found.append([_solved(config.on_loop, *part, right=answers_rightly) for part in parts])
    return found


def summarize(policies: Sequence[Sequence[Solved]]) -> ReasoningReport:
    """The report on what `solve` returned; at least one problem."""
    raw = policies[0]
    labels = [one.labels for one in raw]
    answered = [one.tokens_to_answer for one in labels if one.tokens_to_answer is not None]
    statuses = Counter(one.status for one in policies[-1] if one.status is not None)
    return ReasoningReport(
        problems=len(raw),
        outcomes=dict(Counter(one.outcome for one in labels)),
        loop_rate=_share([one.loop for one in labels]),
        hit_limit_rate=_share([one.hit_limit for one in labels]),
        unclosed_rate=_share([one.unclosed_think for one in labels]),
        delayed_rate=_share([one.delayed_commitment for one in labels]),
        median_tokens=statistics.median(len(one.trace.ends) for one in raw),
        median_tokens_to_answer=statistics.median(answered) if answered else None,
        loops_by_rule=dict(Counter(one.trace.loop.rule for one in raw if one.trace.loop is not None)),
        rescues_by_status=dict(statuses),
        rows=tuple(_row(solved, [one.troubled for one in raw]) for solved in policies),
    )


def _run(engine: Engine, questions: Sequence[Question], config: GenerationConfig) -> list[Generation]:
    return run_requests(engine, [Request(question.prompt_ids, config, config.seed) for question in questions])


def _solved(
    policy: Policy,
    generation: Generation,
    trace: Trace,
    question: Question,
    *,
    right: Callable[[Trace, Question], bool],
) -> Solved:
    return Solved(
        policy,
        trace,
        label(trace, question),
        right(trace, question),
        dict(generation.spent.tokens),
        dict(generation.spent.seconds),
        generation.rescue.status if generation.rescue is not None else None,
    )


def _row(solved: Sequence[Solved], troubled: Sequence[bool]) -> Row:
    tokens = [sum(one.tokens.values()) for one in solved]
    seconds = [sum(one.seconds.values()) for one in solved]
    right = sum(one.right for one in solved)
    split = {
        part: [one.right for one, is_troubled in zip(solved, troubled, strict=True) if is_troubled is part]
        for part in (True, False)
    }
    return Row(
        policy=solved[0].policy,
        accuracy=right / len(solved),
        accuracy_troubled=_share(split[True]) if split[True] else None,
        accuracy_other=_share(split[False]) if split[False] else None,
        tokens_per_problem=sum(tokens) / len(solved),
        tokens_per_correct=sum(tokens) / right if right else None,
        seconds_per_problem=sum(seconds) / len(solved),
        seconds_p95=sorted(seconds)[-(-95 * len(seconds) // 100) - 1],
        seconds_per_correct=sum(seconds) / right if right else None,
        high_precision_share=sum(one.tokens.get(HIGH, 0) for one in solved) / max(1, sum(tokens)),
    )


def _share(marks: Sequence[bool]) -> float:
    return sum(marks) / len(marks)
