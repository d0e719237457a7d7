from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowmem.cli.init import METHODS
from lowmem.config.load import load_run
from lowmem.events import Notice, Sink
from lowmem.jobs import init as jobs_init
from lowmem.jobs.doctor import DoctorReport, Embedded, Missing, Package
from lowmem.jobs.train import TrainReport


def test_init_prints_a_config_that_loads(run: Callable[..., Any], tmp_path: Path) -> None:
    result = run("init", "--method", "mezo", "--model", "m", "--dataset", "d.jsonl")
    (tmp_path / "run.yaml").write_text(result.stdout)
    config = load_run(tmp_path / "run.yaml").config
    assert (config.model, config.method.kind) == ("m", "zo")


def test_the_defaults_and_methods_of_the_verb_are_those_of_the_job(run: Callable[..., Any]) -> None:
    assert METHODS == jobs_init.METHODS
    assert run("init").stdout == jobs_init.init_yaml()


def test_init_writes_a_new_file_and_never_over_an_old_one(run: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    assert run("init", "-o", str(file)).stdout == ""
    written = file.read_text()
    result = run("init", "-o", str(file), "--method", "full")
    assert result.exit_code == 2
    assert "exists and is left as it is" in " ".join(result.stderr.replace("│", " ").split())
    assert file.read_text() == written


def test_init_names_the_methods_there_are(run: Callable[..., Any]) -> None:
    result = run("init", "--method", "lroa")
    assert result.exit_code == 2
    assert "is not one of lora, qlora, full, adanaged, mezo; did you mean lora?" in result.stderr


REPORT = DoctorReport(
    version="1",
    python="3.11",
    platform="Linux",
    threads=1,
    devices=(),
    kernels=(),
    compiler=None,
    packages=(Package("wandb", None, "report_to: wandb", "pip install x"),),
    models=(Embedded("tiny-reasoner", True, ""),),
    missing=(Missing("wandb", "pip install x"),),
)


def test_doctor_says_what_is_missing_and_what_gets_it(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowmem.jobs.doctor.examine", lambda: REPORT)
    result = run("doctor")
    assert result.exit_code == 0
    assert "  wandb: pip install x\n" in result.stdout
    assert "tiny-reasoner  ready" in result.stdout


def test_doctor_as_json(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowmem.jobs.doctor.examine", lambda: REPORT)
    assert json.loads(run("doctor", "--json").stdout)["missing"] == [{"what": "wandb", "command": "pip install x"}]


def test_demo_trains_into_the_folder_that_is_asked_for(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def demo(output_dir: Path, *, overwrite: bool, sink: Sink) -> TrainReport:
        sink(Notice(f"overwrite={overwrite}"))
        return TrainReport(
            output_dir, {"sub": {"exact_match": 0.0}}, {"sub": {"exact_match": 0.9}}, 5, 1.0, 1, "completed"
        )

    monkeypatch.setattr("lowmem.jobs.demo.demo", demo)
    result = run("demo", "--output-dir", str(tmp_path), "--overwrite", "--json")
    assert json.loads(result.stdout)["output_dir"] == str(tmp_path)
    assert result.stderr == "note: overwrite=True\n"
    assert "sub      exact_match  0.0000  0.9000    +0.9" in run("demo").stdout
