"""`lowmem plan` at the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lowmem.cli.app import app
from lowmem.config.load import load_run
from tests.tiny import tiny_config

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan")
    tiny_config("llama").save_pretrained(path / "model")
    return path


@pytest.fixture
def model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LOWMEM_CACHE", str(folder / "cache"))
    return str(folder / "model")


def test_a_table_comes_out_and_the_choice_is_named(model: str) -> None:
    done = RUNNER.invoke(app, ["plan", "--model", model, "--device", "cpu:4GiB", "max_length=16"])
    assert done.exit_code == 0, done.output
    assert "lora on nf4" in done.stdout
    assert "runs: full, adamw" in done.stdout


def test_json_holds_every_row_with_its_components(model: str) -> None:
    arguments = ["plan", "--model", model, "--device", "cuda:8GiB", "max_length=16", "method.allow=[lora]", "--json"]
    plan = json.loads(RUNNER.invoke(app, arguments).stdout)
    assert plan["chosen"]["name"] == "lora"
    assert plan["budget"] == 8 * 2**30
    bills = {bill["phase"]: bill["components"] for bill in plan["chosen"]["bills"]}
    assert bills["update"]["weights"] > 0


def test_explain_prints_one_bill(model: str) -> None:
    base = ["plan", "--model", model, "--device", "cpu:4GiB", "max_length=16"]
    done = RUNNER.invoke(app, [*base, "--explain", "lora"])
    assert "optimizer state" in done.stdout
    wrong = RUNNER.invoke(app, [*base, "--explain", "nonsense"])
    assert wrong.exit_code == 2
    assert "there is no such row" in wrong.stderr


def test_nothing_that_fits_exits_with_three(model: str) -> None:
    done = RUNNER.invoke(app, ["plan", "--model", model, "--device", "cpu", "--budget", "100MiB", "max_length=16"])
    assert done.exit_code == 3
    assert "nothing that the config allows fits" in done.stderr


def test_a_config_or_a_model_is_needed() -> None:
    assert RUNNER.invoke(app, ["plan"]).exit_code == 2


def test_auto_keys_are_left_to_the_planner() -> None:
    keys = ["model=m", "dataset=d.jsonl", "gradient_checkpointing=auto", "per_device_train_batch_size=auto"]
    config = load_run(None, [*keys, "method=auto"]).config
    assert config.auto == ("per_device_train_batch_size", "gradient_checkpointing")
    assert config.method.kind == "auto"
    assert config.gradient_checkpointing is False


def test_serving_is_planned_for_each_way_of_storing_the_cache(model: str) -> None:
    asked = ["plan", "--model", model, "--serve", "--slots", "3", "--context", "64", "--device", "cpu:4GiB"]
    done = RUNNER.invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert done.stdout.count("fits") == 3
    bills = json.loads(RUNNER.invoke(app, [*asked, "--json"]).stdout)
    assert [bill["kv_dtype"] for bill in bills] == ["model", "int8", "int4"]
    assert bills[0]["cache"] > bills[1]["cache"] > bills[2]["cache"] > 0
    refused = RUNNER.invoke(app, [*asked, "--budget", "100MiB"])
    assert refused.exit_code == 3
    assert "the model alone leaves no room" in refused.stderr
