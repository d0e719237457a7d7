from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from lowmem.errors import ConfigError, FormatError
from lowmem.events import (
    CheckpointSaved,
    EvalDone,
    Event,
    Notice,
    RunFinished,
    RunStarted,
    StepDone,
    TextDelta,
    as_record,
)
from lowmem.train.record import MetricsFile, read_metrics, track, trackers


def step(number: int, *, loss: float = 1.0, **details: float) -> StepDone:
    return StepDone(
        step=number,
        epoch=number / 10,
        loss=loss,
        lr=1e-4,
        tokens=100 * number,
        seconds=0.5,
        tokens_per_second=200.0,
        memory_bytes=10,
        peak_bytes=20,
        details=details,
    )


STARTED = RunStarted("LoRA r=8", total_steps=4, start_step=0, trainable_parameters=10, total_parameters=100)
FINISHED = RunFinished(4, "completed", 2.0, 20)


def judged(number: int, split: str) -> EvalDone:
    return EvalDone(number, f"{split}:held-out", {"loss": 1.0}, 0.1)


def write(path: Path, *events: Event, keep_through_step: int | None = None) -> list[dict[str, Any]]:
    record = MetricsFile(path, keep_through_step=keep_through_step)
    for event in events:
        record(event)
    record.close()
    return read_metrics(path)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_every_event_is_one_line_and_text_is_none(tmp_path: Path) -> None:
    events: list[Event] = [
        STARTED,
        Notice("a"),
        step(1, grad_norm=2.0),
        CheckpointSaved(1, "step-1", "final"),
        FINISHED,
    ]
    records = write(tmp_path / "metrics.jsonl", *events, TextDelta("never"))
    assert records == [json.loads(json.dumps(as_record(event))) for event in events]
    assert len(lines(tmp_path / "metrics.jsonl")) == len(events)


def test_a_record_is_on_disk_as_soon_as_it_happens(tmp_path: Path) -> None:
    record = MetricsFile(tmp_path / "metrics.jsonl")
    record(step(1))
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1]
    record.close()


def test_numbers_that_are_not_finite_are_written_as_text_everywhere(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, step(1, loss=math.nan, grad_norm=math.inf), EvalDone(1, "after:x", {"loss": -math.inf}, 0.1))

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    first, second = (json.loads(line, parse_constant=refuse) for line in lines(path))
    assert (first["loss"], first["details"]["grad_norm"], second["metrics"]["loss"]) == ("nan", "inf", "-inf")
    assert math.isnan(float(first["loss"]))


def test_a_new_run_starts_a_new_file(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", step(1))
    assert [r["step"] for r in write(tmp_path / "metrics.jsonl", step(7))] == [7]


def test_resume_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    kept: list[Event] = [STARTED, Notice("an alias"), judged(0, "before"), step(1), step(2), judged(2, "during")]
    lost: list[Event] = [
        CheckpointSaved(2, "step-00000002", "interrupted"),
        step(3),
        judged(3, "during"),
        CheckpointSaved(3, "step-00000003", "periodic"),
        RunFinished(3, "interrupted", 1.0, 20),
    ]
    write(path, *kept, *lost)
    rest: list[Event] = [step(3), step(4), FINISHED]
    resumed = write(path, *rest, keep_through_step=2)
    assert resumed == write(tmp_path / "straight.jsonl", *kept, *rest)


def test_resuming_a_finished_run_does_not_record_its_end_twice(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    end: list[Event] = [judged(4, "after"), CheckpointSaved(4, "step-00000004", "final"), FINISHED]
    once = write(path, STARTED, step(4), *end)
    assert write(path, *end, keep_through_step=4) == once


def test_a_notice_repeated_on_resume_is_recorded_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, Notice("an alias"), step(1))
    records = write(path, Notice("an alias"), Notice("new"), keep_through_step=1)
    assert [r.get("message", r.get("step")) for r in records] == ["an alias", 1, "new"]


def test_resume_without_a_file_starts_one(tmp_path: Path) -> None:
    assert [r["step"] for r in write(tmp_path / "metrics.jsonl", step(5), keep_through_step=4)] == [5]


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_last_line_cut_by_a_crash_is_dropped_and_does_not_spoil_the_next(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, step(1), step(2))
    path.write_text(path.read_text()[: -1 - cut])
    assert [r["step"] for r in read_metrics(path)] == [1]
    assert [r["step"] for r in write(path, step(2), keep_through_step=1)] == [1, 2]


@pytest.mark.parametrize("damage", ["{", "", "7", "null", '{"step": 2}'])
def test_a_damaged_line_in_the_middle_is_refused_with_its_number(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, step(1), step(2), step(3))
    content = lines(path)
    path.write_text("\n".join([content[0], damage, content[2]]) + "\n")
    with pytest.raises(FormatError, match=r"metrics\.jsonl:2: not a JSON record of an event"):
        read_metrics(path)


def test_trackers_get_the_numbers_of_steps_and_evaluations_only() -> None:
    seen: list[tuple[dict[str, float], int]] = []
    for event in (STARTED, Notice("no number"), step(3, gamma=0.5), judged(4, "after"), FINISHED):
        track([lambda values, number: seen.append((values, number))], event)
    assert seen == [
        ({"train/loss": 1.0, "train/lr": 1e-4, "train/tokens_per_second": 200.0, "train/gamma": 0.5}, 3),
        ({"eval/after:held-out/loss": 1.0}, 4),
    ]


@pytest.mark.slow
def test_tensorboard_gets_event_files_with_the_values(tmp_path: Path) -> None:
    (log,) = trackers(["tensorboard"], folder=tmp_path, run_name="run", config={})
    track([log], step(1, loss=3.0))
    track([log], step(2, loss=2.0))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(scalar.step, scalar.value) for scalar in events.Scalars("train/loss")] == [(1, 3.0), (2, 2.0)]


@pytest.mark.parametrize(
    ("name", "module"),
    [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb"), ("trackio", "trackio")],
)
def test_a_missing_tracker_is_refused_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"{name} is not installed; run `pip install 'lowmem\[{name}\]'`"):
        trackers([name], folder=tmp_path, run_name="run", config={})


def test_no_tracker_is_needed(tmp_path: Path) -> None:
    assert trackers([], folder=tmp_path, run_name="run", config={}) == []
