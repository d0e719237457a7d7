from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowmem.config.dataset import AlpacaData, AutoData, ProceduralData, TaskData
from lowmem.config.generation import GenerationConfig
from lowmem.config.load import dump_run
from lowmem.config.run import RunConfig
from lowmem.events import EvalDone, Sink


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the job was asked for by the last call."""
    seen: dict[str, Any] = {}

    def evaluate(target: str, datasets: Any, *, sink: Sink, **options: Any) -> dict[str, dict[str, float]]:
        seen.update(target=target, datasets=datasets, **options)
        sink(EvalDone(0, "dev", {"loss": 0.5}, 1.0))
        return {"dev": {"loss": 0.5, "accuracy": 0.75}}

    monkeypatch.setattr("lowmem.jobs.evaluate.evaluate", evaluate)
    return seen


def run_folder(tmp_path: Path) -> RunConfig:
    config = RunConfig(
        model="m",
        dataset=(AutoData(path="train.jsonl"),),
        eval_dataset=(AlpacaData(path="dev.jsonl"),),
        max_length=64,
        generation=GenerationConfig(max_new_tokens=9),
    )
    (tmp_path / "config.yaml").write_text(dump_run(config))
    return config


def test_metrics_are_on_stdout(run: Callable[..., Any], asked: dict[str, Any]) -> None:
    result = run("eval", "m", "--dataset", "dev.jsonl")
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["dataset", "metric", "value"],
        ["dev", "loss", "0.5000"],
        ["dev", "accuracy", "0.7500"],
    ]
    assert result.stderr == "eval dev: loss 0.5000 in 1s\n"


def test_json(run: Callable[..., Any], asked: dict[str, Any]) -> None:
    assert json.loads(run("eval", "m", "--dataset", "dev.jsonl", "--json").stdout)["dev"]["accuracy"] == 0.75


def test_options_describe_the_datasets(run: Callable[..., Any], asked: dict[str, Any]) -> None:
    run("eval", "m", "--dataset", "ä.jsonl", "--dataset", "glue", "--task", "sst2", "--split", "dev", "--limit", "5")
    assert asked["datasets"] == (
        TaskData(path="ä.jsonl", task="sst2", split="dev"),
        TaskData(path="glue", task="sst2", split="dev"),
    )
    assert asked["limit"] == 5


def test_a_procedural_family_is_evaluated_on_unseen_problems(run: Callable[..., Any], asked: dict[str, Any]) -> None:
    run("eval", "m", "--dataset", "sub")
    assert asked["datasets"] == (ProceduralData(family="sub", size=200, data_seed=1),)


def test_a_run_folder_is_enough(run: Callable[..., Any], asked: dict[str, Any], tmp_path: Path) -> None:
    config = run_folder(tmp_path)
    assert run("eval", str(tmp_path)).exit_code == 0
    assert asked["datasets"] == config.eval_dataset
    assert (asked["max_length"], asked["generation"]) == (64, config.generation)


def test_overrides_change_the_keys_of_the_run(run: Callable[..., Any], asked: dict[str, Any], tmp_path: Path) -> None:
    run_folder(tmp_path)
    run("eval", str(tmp_path), "max_length=32", "per_device_eval_batch_size=2", "eval_generate=false", "dtype=fp32")
    assert (asked["max_length"], asked["batch_size"], asked["generate"], asked["dtype"]) == (32, 2, False, "fp32")


def test_a_dataset_replaces_those_of_the_run(run: Callable[..., Any], asked: dict[str, Any], tmp_path: Path) -> None:
    run_folder(tmp_path)
    run("eval", str(tmp_path), "--dataset", "other.jsonl")
    assert asked["datasets"] == (AutoData(path="other.jsonl"),)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--task", "sst2"], "--task says how to read a --dataset; name one"),
        (["--dataset", "d", "--format", "alpca"], "eval_dataset.0.format: is 'alpca', must be one of"),
        (["--dataset", "d", "--device", "tpu"], "use auto, cpu or cuda"),
        (["--dataset", "d", "--limit", "0"], "--limit"),
    ],
)
def test_bad_options_are_usage_errors(
    run: Callable[..., Any], asked: dict[str, Any], args: list[str], message: str
) -> None:
    result = run("eval", "m", *args)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert asked == {}


def test_reasoning_is_a_table_with_the_baseline_and_a_sentence(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lowmem.evaluate.reasoning import ReasoningReport, Row

    seen: dict[str, Any] = {}
    rows = (
        Row("raw", 0.25, 0.0, 0.5, 100, 400, 1, 2, 4, 0),
        Row("last_parseable", 0.5, 0.5, 0.5, 100, 200, 1, 2, 2, 0),
    )
    report = ReasoningReport(4, {"ok": 1, "commitment_failure": 3}, 0.5, 0.5, 0.25, 0, 90, None, {"tail": 2}, {}, rows)

    def evaluate_reasoning(target: str, datasets: Any, **options: Any) -> dict[str, ReasoningReport]:
        seen.update(target=target, datasets=datasets, **options)
        return {"add": report}

    monkeypatch.setattr("lowmem.jobs.reasoning.evaluate_reasoning", evaluate_reasoning)
    lines = run("eval", "m", "--reasoning", "--dataset", "add", "--fallback", "nested").stdout.splitlines()
    assert [line.split()[:2] for line in lines[2:4]] == [["raw", "0.250"], ["last_parseable", "0.500"]]
    assert lines[4].startswith("4 problems: 3 right answer lost, 1 right. loop 50.0%")
    assert (seen["fallback"], seen["generation"].on_loop) == ("nested", "rescue")
    found = json.loads(run("eval", "m", "--reasoning", "--dataset", "add", "--json").stdout)
    assert found["add"]["rows"][1]["accuracy"] == 0.5
    assert seen["generation"].on_loop == "continue"


def test_tasks_of_lm_eval_are_metrics(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def evaluate_tasks(target: str, tasks: list[str], **options: Any) -> dict[str, dict[str, float]]:
        asked.append((target, tasks, options["limit"]))
        return {"arc_easy": {"acc": 0.5}}

    monkeypatch.setattr("lowmem.jobs.lm_eval.evaluate_tasks", evaluate_tasks)
    result = run("eval", "m", "--lm-eval", "arc_easy", "--limit", "3")
    assert result.stdout.splitlines()[1].split() == ["arc_easy", "acc", "0.5000"]
    assert asked == [("m", ["arc_easy"], 3)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--traces", "x.jsonl"), "belong to --reasoning"),
        (("--fallback", "nested"), "belong to --reasoning"),
        (("--lm-eval", "x", "--reasoning"), "leave --reasoning out"),
        (("--lm-eval", "x", "--dataset", "add"), "leave --dataset out"),
        (("--reasoning", "--fallback", "nested", "--dataset", "add", "generation.on_loop=stop"), "has none; leave one"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    run: Callable[..., Any], flags: tuple[str, ...], message: str
) -> None:
    result = run("eval", "m", *flags)
    assert result.exit_code == 2
    assert message in result.stderr
