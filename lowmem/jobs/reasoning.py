"""`lowmem eval --reasoning`: every trace labelled, and what it costs to get a right answer out of it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lowmem.config.dataset import Dataset
from lowmem.config.generation import GenerationConfig
from lowmem.data.dataset import EncodedDataset, open_dataset
from lowmem.errors import ConfigError
from lowmem.evaluate.evaluate import chosen_indices, question_of
from lowmem.evaluate.exact import Question
from lowmem.evaluate.reasoning import ReasoningReport, Solved, solve, summarize
from lowmem.events import EvalDone, Sink
from lowmem.generate.fallback import Fallback
from lowmem.generate.generate import engine_for
from lowmem.generate.tokens import TokenTexts
from lowmem.jobs.evaluate import MAX_LENGTH, name_apart
from lowmem.jobs.fallback import open_fallback
from lowmem.jobs.target import DtypeName, Target, open_target
from lowmem.report.elements import write_whole
from lowmem.report.html import write_report
from lowmem.report.run_folder import REASONING

REPORT = "report.html"


def evaluate_reasoning(
    target: str,
    datasets: Sequence[Dataset],
    *,
    batch_size: int = 8,
    limit: int | None = None,
    max_length: int | None = None,
    dtype: DtypeName | None = None,
    generation: GenerationConfig | None = None,
    fallback: str | None = None,
    traces: Path | None = None,
    device: str = "auto",
    sink: Sink,
) -> dict[str, ReasoningReport]:
    """A report by dataset name, in order. Of a run folder it is kept as reasoning.json, for the run's page too.

    `traces`: a file that gets a line per problem and policy. Raises `ConfigError` for datasets whose answers cannot be
    verified, before any trace is decoded.
    """
    if not datasets:
        raise ConfigError("eval --reasoning: no dataset; name one whose answers can be verified with --dataset")
    opened = open_target(target, sink=sink, device=device, dtype=dtype)
    second = open_fallback(opened, fallback, sink=sink, device=device, dtype=dtype)
    length = max_length or (MAX_LENGTH if opened.run is None else opened.run.max_length)
    model, tokenizer = opened.loaded.model, opened.loaded.tokenizer
    read = partial(open_dataset, tokenizer=tokenizer, max_length=length, sink=sink, model_type=model.config.model_type)
    sets = name_apart([read(section) for section in datasets])
    questions = {name: verifiable(name, dataset, limit) for name, dataset in sets.items()}
    solved, found = dict[str, list[list[Solved]]](), dict[str, ReasoningReport]()
    for name, asked in questions.items():
        started = time.monotonic()
        solved[name] = _solve(opened, asked, generation or opened.generation, second, batch_size)
        found[name] = summarize(solved[name])
        accuracy = {f"accuracy_{row.policy}": row.accuracy for row in found[name].rows}
        sink(EvalDone(step=0, split=name, metrics=accuracy, seconds=time.monotonic() - started))
    if traces is not None:
        write_whole(traces, "".join(_lines(solved, questions)))
    if opened.run is not None:
        _keep(Path(target), found)
    return found


def verifiable(name: str, dataset: EncodedDataset, limit: int | None) -> list[Question]:
    """The questions of `limit` examples. Raises `ConfigError` where an example's answer cannot be checked."""
    found = []
    for index in chosen_indices(len(dataset), limit):
        question = question_of(dataset[index])
        if question is None:
            raise ConfigError(
                f"eval --reasoning: {name} has no answers that can be verified (example {index}); use a procedural "
                "family, answers that end in `#### N`, or a dataset with a verifier"
            )
        found.append(question)
    if not found:
        raise ConfigError(f"eval --reasoning: {name} has no examples")
    return found


def _solve(
    opened: Target, asked: list[Question], config: GenerationConfig, fallback: Fallback | None, slots: int
) -> list[list[Solved]]:
    model, tokenizer = opened.loaded.model, opened.loaded.tokenizer
    prompts = [question.prompt_ids for question in asked]
    engine = engine_for(model, tokenizer, prompts, config, slots=min(slots, len(asked)), fallback=fallback)
    return solve(engine, asked, config, TokenTexts(tokenizer))


def _lines(solved: dict[str, list[list[Solved]]], questions: dict[str, list[Question]]) -> list[str]:
    return [
        json.dumps(
            {
                "dataset": name,
                "problem": index,
                "policy": one.policy,
                "right": one.right,
                **dataclasses.asdict(one.labels),
                "loop_found": None if one.trace.loop is None else dataclasses.asdict(one.trace.loop),
                "rescue": one.status,
                "tokens": one.tokens,
                "seconds": {precision: round(seconds, 4) for precision, seconds in one.seconds.items()},
                "references": list(questions[name][index].references),
                "text": one.trace.text,
            },
            ensure_ascii=True,  # a tokenizer may give half a character
        )
        + "\n"
        for name, policies in solved.items()
        for policy in policies
        for index, one in enumerate(policy)
    ]


def _keep(folder: Path, found: dict[str, ReasoningReport]) -> None:
    """The run's reasoning.json holds `found`, and its page, where it has one, shows it."""
    content = {name: dataclasses.asdict(report) for name, report in found.items()}
    write_whole(folder / REASONING, json.dumps(content, indent=1) + "\n")
    if (folder / REPORT).is_file():
        write_report(folder)
