"""A target, some datasets, and the metrics of each."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lowmem.config.dataset import CompletionData, Dataset, ProceduralData, TaskData, TextData
from lowmem.config.generation import GenerationConfig
from lowmem.errors import ConfigError
from lowmem.events import EvalDone, Event
from lowmem.jobs.evaluate import evaluate
from tests.jobs.run_folder import make_run
from tests.models.tiny import save_tiny

SHORT = GenerationConfig(max_new_tokens=3)


@pytest.fixture
def datasets(tmp_path: Path) -> list[Dataset]:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "stories.txt").write_text("the cat sat on the mat and the dog ran after it " * 5)
    rows = [{"sentence": f"a {word} film", "label": n % 2} for n, word in enumerate(["bad", "good", "dull", "fine"])]
    (folder / "films.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sums = [{"prompt": f"{n}+1=", "completion": f"#### {n + 1}"} for n in range(4)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    return [
        TextData(path=str(folder / "stories.txt")),
        TaskData(path=str(folder / "films.jsonl"), task="sst2"),
        CompletionData(path=str(folder / "sums.jsonl")),
        CompletionData(path=str(folder / "sums.jsonl"), limit=2),
    ]


def test_every_dataset_gets_the_metrics_of_its_kind(tmp_path: Path, datasets: list[Dataset]) -> None:
    save_tiny(tmp_path / "model")
    events: list[Event] = []
    found = evaluate(
        str(tmp_path / "model"),
        datasets,
        dtype="fp32",
        generation=SHORT,
        batch_size=2,
        device="cpu",
        sink=events.append,
    )
    assert {name: set(metrics) for name, metrics in found.items()} == {
        "stories": {"loss", "perplexity"},
        "sst2": {"loss", "accuracy", "accuracy_median_threshold"},
        "sums": {"loss", "perplexity", "exact_match"},
        "sums-2": {"loss", "perplexity", "exact_match"},
    }
    assert all(math.isfinite(value) for metrics in found.values() for value in metrics.values())
    done = [event for event in events if isinstance(event, EvalDone)]
    assert {event.split: event.metrics for event in done} == found


def test_answers_are_generated_only_when_wanted(tmp_path: Path, datasets: list[Dataset]) -> None:
    save_tiny(tmp_path / "model")
    found = evaluate(str(tmp_path / "model"), datasets[2:3], generate=False, sink=lambda event: None)
    assert set(found["sums"]) == {"loss", "perplexity"}


def test_a_run_is_measured_with_its_own_length(tmp_path: Path) -> None:
    make_run(tmp_path, max_length=24)
    problems: list[Dataset] = [ProceduralData(family="add", size=3)]
    events: list[Event] = []
    own = evaluate(str(tmp_path / "run"), problems, generate=False, sink=events.append)
    assert "max_length=24" in str(events)
    assert own == evaluate(str(tmp_path / "run"), problems, max_length=24, generate=False, sink=lambda event: None)
    assert own != evaluate(str(tmp_path / "run"), problems, max_length=64, generate=False, sink=lambda event: None)


def test_no_dataset_is_an_error_with_a_hint() -> None:
    with pytest.raises(ConfigError, match="no dataset to evaluate on; name one with --dataset"):
        evaluate("tiny-reasoner", [], sink=lambda event: None)
