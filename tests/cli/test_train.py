from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lowmem.cli.train import with_checkpoint
from lowmem.config.run import RunConfig
from lowmem.events import CheckpointSaved, EvalDone, Notice, RunFinished, RunStarted, Sink, StepDone
from lowmem.jobs.train import DryRun, TrainReport

YAML = "model: m\ndataset: d.jsonl\nmax_steps: 100\n"


@dataclass
class FakeTrain:
    """Stands in for `lowmem.jobs.train`; remembers what it was asked for."""

    calls: list[dict[str, Any]] = field(default_factory=list)

    def train(
        self, config: RunConfig, *, sink: Sink, resume: bool | Path = False, overwrite: bool = False
    ) -> TrainReport:
        self.calls.append({"config": config, "resume": resume, "overwrite": overwrite})
        sink(RunStarted("LoRA r=8 + AdamW", 100, 0, 1000, 2000))
        sink(EvalDone(0, "before", {"loss": 2.0}, 1.0))
        for step in range(1, 101):
            sink(StepDone(step, step / 100, 1 / step, 1e-4, 10 * step, 0.1, 100.0, 2**20, 2**30))
        sink(CheckpointSaved(100, "runs/x/checkpoints/step-100", "end"))
        sink(RunFinished(100, "completed", 12.0, 2**30))
        before = {"dev": {"loss": 2.0, "accuracy": 0.5}}
        after = {"dev": {"loss": 1.5, "accuracy": 0.75}}
        return TrainReport(Path(config.output_dir), before, after, 100, 12.0, 2**30, "completed")

    def dry_run(self, config: RunConfig, *, sink: Sink) -> DryRun:
        self.calls.append({"config": config})
        sink(Notice("d.jsonl is read as alpaca"))
        return DryRun("model: m\n", "Q: 1+1=[2]", {"samples": 12.0})


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> FakeTrain:
    fake = FakeTrain()
    monkeypatch.setattr("lowmem.jobs.train.train", fake.train)
    monkeypatch.setattr("lowmem.jobs.train.dry_run", fake.dry_run)
    return fake


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "run.yaml").write_text(YAML)
    return str(tmp_path / "run.yaml")


def test_the_config_reaches_the_job_with_its_overrides(run: Callable[..., Any], job: FakeTrain, path: str) -> None:
    assert run("train", path, "seed=7", "method.lora_r=4", "--overwrite").exit_code == 0
    (call,) = job.calls
    assert (call["config"].seed, call["config"].method.lora_r) == (7, 4)
    assert (call["resume"], call["overwrite"]) == (False, True)


def test_a_first_run_needs_no_file(run: Callable[..., Any], job: FakeTrain) -> None:
    assert run("train", "model=m", "dataset=d.jsonl").exit_code == 0
    assert job.calls[0]["config"].model == "m"


def test_a_preset_is_found_by_its_name(run: Callable[..., Any], job: FakeTrain) -> None:
    assert run("train", "tiny-demo", "seed=3").exit_code == 0
    assert (job.calls[0]["config"].model, job.calls[0]["config"].seed) == ("tiny-reasoner", 3)


def test_the_result_is_on_stdout_and_the_progress_on_stderr(run: Callable[..., Any], job: FakeTrain, path: str) -> None:
    result = run("train", path, "lr=1e-4")
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines == [
        "dataset metric before after change",
        "dev loss 2.0000 1.5000 -0.5",
        "dev accuracy 0.5000 0.7500 +0.25",
        "",
        "completed: 100 steps in 12s, peak memory 1.00 GiB",
        "run folder: runs/default",
    ]
    assert "note: command line: lr is read as learning_rate" in result.stderr
    assert "LoRA r=8 + AdamW: 100 steps, 1,000 of 2,000 parameters trained" in result.stderr
    assert "next: lowmem chat runs/default" in result.stderr
    assert "\x1b" not in result.stdout + result.stderr


def test_json_is_the_whole_of_stdout(run: Callable[..., Any], job: FakeTrain, path: str) -> None:
    report = json.loads(run("train", path, "--json").stdout)
    assert report["output_dir"] == "runs/default"
    assert report["after"]["dev"]["accuracy"] == 0.75
    assert report["reason"] == "completed"


def test_a_dry_run_shows_config_sample_and_counts(run: Callable[..., Any], job: FakeTrain, path: str) -> None:
    result = run("train", path, "--dry-run")
    assert result.stdout == "model: m\n# First sample; what carries loss is marked:\n# Q: 1+1=[2]\n# samples: 12\n"
    assert result.stderr == "note: d.jsonl is read as alpaca\n"


@pytest.mark.parametrize("args", [["--resume"], ["--resume", "seed=1"], ["seed=1", "--resume"]])
def test_resume_alone_means_the_latest_checkpoint(
    run: Callable[..., Any], job: FakeTrain, path: str, args: list[str]
) -> None:
    assert run("train", path, *args).exit_code == 0
    assert job.calls[0]["resume"] is True


def test_resume_takes_a_checkpoint_folder(run: Callable[..., Any], job: FakeTrain, path: str, tmp_path: Path) -> None:
    assert run("train", "--resume", str(tmp_path), path, "seed=1").exit_code == 0
    assert job.calls[0]["resume"] == tmp_path
    assert job.calls[0]["config"].seed == 1


def test_resume_may_stand_before_the_config(run: Callable[..., Any], job: FakeTrain, path: str) -> None:
    assert run("train", "--resume", path).exit_code == 0
    assert job.calls[0]["resume"] is True


def test_a_checkpoint_can_be_given_with_an_equals_sign() -> None:
    assert with_checkpoint(["--resume=x", "run.yaml"]) == ["--resume=x", "run.yaml"]


def test_resume_and_overwrite_contradict_each_other(run: Callable[..., Any], job: FakeTrain, path: str) -> None:
    result = run("train", path, "--resume", "--overwrite")
    assert result.exit_code == 2
    assert "give one of them" in result.stderr
    assert job.calls == []


def test_a_bad_config_stops_before_the_job(run: Callable[..., Any], job: FakeTrain, path: str) -> None:
    result = run("train", path, "sed=1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: command line: sed: is not a key; did you mean seed?\n"
    assert job.calls == []
