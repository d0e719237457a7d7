"""The whole way from a YAML to a model, on a tiny one; also killed in the middle."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lowmem.config.load import load_run
from lowmem.errors import CheckpointError, ConfigError
from lowmem.events import TIMING_FIELDS, Event, StepDone
from lowmem.jobs.train import TrainReport, dry_run, train
from lowmem.train.record import read_metrics
from tests.models.tiny import save_tiny

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": {"kind": "lora", "lora_r": 4, "lora_dropout": 0.1}, "learning_rate": 1e-2},
    "zo": {"method": {"kind": "zo"}},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


def write_config(folder: Path, model: Path, **changes: Any) -> Path:
    """A run of 20 steps on twelve tiny samples, two datasets to evaluate on."""
    rows = [{"prompt": f"the cat number {n} sat on", "completion": f" the mat {n % 3}"} for n in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"format": "completion", "path": str(folder / "rows.jsonl")}
    config = {
        "model": str(model),
        "dtype": "fp32",
        "dataset": [data],
        "eval_dataset": [data | {"limit": 4}],
        "eval_generate": False,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 20,
        "eval_steps": 5,
        "save_steps": 4,
        "output_dir": str(folder / "run"),
    } | changes
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def go(path: Path, *, resume: bool = False, sink: Any = lambda event: None) -> TrainReport:
    return train(load_run(path).config, sink=sink, resume=resume)


def comparable(folder: Path) -> list[dict[str, Any]]:
    """Steps and evaluations of the record, without what depends on the clock."""
    kept = [r for r in read_metrics(folder / "metrics.jsonl") if r["event"] in ("StepDone", "EvalDone")]
    return [{key: value for key, value in record.items() if key not in TIMING_FIELDS} for record in kept]


@pytest.mark.parametrize("name", METHODS)
def test_a_yaml_becomes_a_model_that_answers_better(name: str, tmp_path: Path, model: Path) -> None:
    report = go(write_config(tmp_path, model, **METHODS[name]))
    assert report.reason == "completed"
    assert report.steps == 20
    (dataset,) = report.after
    assert report.after[dataset]["loss"] < report.before[dataset]["loss"]
    run = tmp_path / "run"
    assert {p.name for p in run.iterdir()} == {
        "checkpoints",
        "config.yaml",
        "env.json",
        "memory.json",
        "metrics.jsonl",
        "model",
        "report.html",
    }
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == ["step-00000016", "step-00000020"]
    assert (run / "model" / "tokenizer.json").exists()


def test_the_run_folder_alone_is_enough_for_evaluation(tmp_path: Path, model: Path) -> None:
    from lowmem.jobs.evaluate import evaluate

    path = write_config(tmp_path, model, **METHODS["lora"])
    report = go(path)
    section = load_run(path).config.eval_dataset
    again = evaluate(str(tmp_path / "run"), section, sink=lambda event: None)
    (name,) = report.after
    assert again[name]["loss"] == pytest.approx(report.after[name]["loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_sigkill_at_a_random_step_and_resume_equal_the_uninterrupted_run(
    name: str, tmp_path: Path, model: Path
) -> None:
    for folder in ("straight", "killed"):
        (tmp_path / folder).mkdir()
    straight = write_config(tmp_path / "straight", model, **METHODS[name])
    killed = write_config(tmp_path / "killed", model, **METHODS[name])
    go(straight)
    when = random.Random(name).randrange(5, 19)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _SLOW_TRAIN, str(killed), str(when)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not any(r.get("step") == when for r in _records(tmp_path / "killed" / "run")):
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline, "the run never reached the step at which it is killed"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    if process.stderr:
        process.stderr.close()
    assert max(r["step"] for r in _records(tmp_path / "killed" / "run") if r["event"] == "StepDone") < 20
    go(killed, resume=True)
    left, right = (
        load_file(tmp_path / folder / "run" / "checkpoints" / "step-00000020" / "tensors.safetensors")
        for folder in ("straight", "killed")
    )
    assert left.keys() == right.keys()
    for key in left:
        assert torch.equal(left[key], right[key]), key
    assert comparable(tmp_path / "straight" / "run") == comparable(tmp_path / "killed" / "run")


_SLOW_TRAIN = """
import sys, time
import torch
from pathlib import Path
from lowmem.config.load import load_run
from lowmem.events import StepDone
from lowmem.jobs.train import train
torch.set_num_threads(1)
def sink(event):
    if isinstance(event, StepDone) and event.step >= int(sys.argv[2]):
        time.sleep(600)  # stays here until it is killed
train(load_run(Path(sys.argv[1])).config, sink=sink)
"""


def _records(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [r for r in read_metrics(path) if "step" in r] if path.exists() else []


def test_a_tampered_checkpoint_is_refused_and_the_one_before_is_offered(tmp_path: Path, model: Path) -> None:
    path = write_config(tmp_path, model, **METHODS["lora"])
    go(path)
    tensors = tmp_path / "run" / "checkpoints" / "step-00000020" / "tensors.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"step-00000020/tensors.safetensors is damaged.*step 16 is intact"):
        go(path, resume=True)
    config = load_run(path).config
    report = train(config, sink=lambda event: None, resume=tmp_path / "run" / "checkpoints" / "step-00000016")
    assert report.steps == 20


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path: Path, model: Path) -> None:
    path = write_config(tmp_path, model, **METHODS["lora"])

    class Killed(BaseException):
        """Stands for a crash."""

    def kill(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 2:
            raise Killed

    with pytest.raises(Killed):
        go(path, sink=kill)
    notices: list[str] = []
    report = go(path, resume=True, sink=lambda event: notices.append(getattr(event, "message", "")))
    assert report.steps == 20
    assert any("no checkpoint was written yet" in message for message in notices)
    assert [r["step"] for r in comparable(tmp_path / "run") if r["event"] == "StepDone"] == list(range(1, 21))


def test_dry_run_shows_the_trained_tokens_and_reads_no_weights(tmp_path: Path, model: Path) -> None:
    without_weights = tmp_path / "empty"
    without_weights.mkdir()
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            (without_weights / file.name).write_bytes(file.read_bytes())
    shown = dry_run(load_run(write_config(tmp_path, without_weights)).config, sink=lambda event: None)
    assert "⟦ the mat" in shown.preview
    assert shown.batches["steps"] == 20
    assert shown.batches["samples"] == 12
    assert 0 < shown.batches["trained_in_first_step"] < shown.batches["tokens_in_first_step"]
    assert not (tmp_path / "run").exists()


def test_a_used_output_folder_is_refused_before_anything_is_loaded(tmp_path: Path, model: Path) -> None:
    path = write_config(tmp_path, model)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="is not empty"):
        go(path)
