"""`eval --reasoning` from datasets to a report, a run's page and a file of traces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lowmem.config.dataset import CompletionData, ProceduralData, TextData
from lowmem.config.generation import GenerationConfig
from lowmem.errors import ConfigError
from lowmem.events import EvalDone, Event
from lowmem.jobs.reasoning import evaluate_reasoning
from lowmem.report.html import write_report
from lowmem.report.run_folder import read_run_folder
from tests.jobs.run_folder import make_run
from tests.models.tiny import save_tiny

ADD = ProceduralData(format="procedural", family="add", size=6, data_seed=1)
SHORT = GenerationConfig(max_new_tokens=60)


def ignore(event: Event) -> None:
    pass


def test_a_reasoner_is_right_and_every_trace_is_written(tmp_path: Path) -> None:
    events: list[Event] = []
    found = evaluate_reasoning(
        "tiny-reasoner",
        [ADD],
        limit=4,
        dtype="fp32",
        generation=SHORT.model_copy(update={"on_loop": "rescue", "commit_tokens": 8}),
        traces=tmp_path / "traces.jsonl",
        device="cpu",
        sink=events.append,
    )
    assert (found["add"].problems, found["add"].outcomes) == (4, {"ok": 4})
    assert [(row.policy, row.accuracy) for row in found["add"].rows] == [
        ("raw", 1.0),
        ("last_parseable", 1.0),
        ("rescue", 1.0),
    ]
    lines = [json.loads(line) for line in (tmp_path / "traces.jsonl").read_text().splitlines()]
    assert [(line["policy"], line["problem"]) for line in lines][:5] == [("raw", n) for n in range(4)] + [
        ("last_parseable", 0)
    ]
    assert {line["outcome"] for line in lines} == {"ok"}
    (done,) = [event for event in events if isinstance(event, EvalDone)]
    assert done.metrics == {"accuracy_raw": 1.0, "accuracy_last_parseable": 1.0, "accuracy_rescue": 1.0}


def test_a_runs_page_shows_what_was_found(tmp_path: Path) -> None:
    make_run(tmp_path)
    folder = tmp_path / "run"
    write_report(folder)
    evaluate_reasoning(str(folder), [ADD], limit=2, dtype="fp32", generation=SHORT, device="cpu", sink=ignore)
    page = (folder / "report.html").read_text()
    assert "<h2>Reasoning</h2>" in page
    assert "last_parseable" in page
    (folder / "reasoning.json").write_text('{"add": {"rows": 3}}')
    write_report(folder)
    assert "<h2>Reasoning</h2>" not in (folder / "report.html").read_text()
    assert any("is no report of `lowmem eval --reasoning`" in problem for problem in read_run_folder(folder).problems)


def test_answers_that_cannot_be_verified_are_refused(tmp_path: Path) -> None:
    model = str(save_tiny(tmp_path / "model"))
    text, pairs = tmp_path / "story.txt", tmp_path / "pairs.jsonl"
    text.write_text("the cat sat on the mat " * 20)
    pairs.write_text('{"prompt": "a", "completion": " b"}\n')
    for dataset in (TextData(path=str(text)), CompletionData(path=str(pairs))):
        with pytest.raises(ConfigError, match="has no answers that can be verified"):
            evaluate_reasoning(model, [dataset], device="cpu", sink=ignore)


def test_no_dataset_is_refused() -> None:
    with pytest.raises(ConfigError, match="eval --reasoning: no dataset; name one"):
        evaluate_reasoning("tiny-reasoner", [], sink=ignore)
