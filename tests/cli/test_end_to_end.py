"""The verbs against the real jobs, on a model of forty thousand parameters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowmem.jobs.init import METHODS
from tests.models.tiny import save_tiny

SHORT = ("max_steps=2", "dtype=fp32", "eval_limit=2", "generation.max_new_tokens=2")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


def test_a_first_session_from_init_to_chat(
    run: Callable[..., Any], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("init", "--model", str(model), "-o", "run.yaml").exit_code == 0
    dry = run("train", "run.yaml", "--dry-run")
    assert "# First sample" in dry.stdout
    assert not Path("runs").exists()

    trained = run("train", "run.yaml", *SHORT, "--json")
    report = json.loads(trained.stdout)
    assert (report["steps"], report["output_dir"]) == (2, "runs/lora")
    assert run("train", "run.yaml", *SHORT).exit_code == 2  # the folder is in use
    assert run("train", "run.yaml", *SHORT, "--resume").exit_code == 0

    evaluated = json.loads(run("eval", "runs/lora", "--limit", "2", "--json").stdout)
    assert evaluated.keys() == report["after"].keys()
    assert run("generate", "runs/lora", "12-3=?", "--max-new-tokens", "3").stdout.endswith("\n")
    assert run("chat", "runs/lora", "--max-new-tokens", "3", input="12-3=?\n/quit\n").exit_code == 0


@pytest.mark.parametrize("method", [method for method in METHODS if method != "lora"])
def test_every_method_of_init_trains_as_it_stands(
    run: Callable[..., Any], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(run("init", "--method", method, "--model", str(model)).stdout)
    assert json.loads(run("train", "run.yaml", *SHORT, "--json").stdout)["reason"] == "completed"
