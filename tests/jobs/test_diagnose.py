"""From one config with a grid to the report, on a tiny model; the runs are made in this process but for one test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lowmem.batch.ledger import Entry
from lowmem.batch.spec import load_batch
from lowmem.config.load import load_run
from lowmem.errors import ConfigError
from lowmem.jobs import batch
from lowmem.jobs import diagnose as diagnosing
from lowmem.jobs.diagnose import ForgettingReport, forgetting
from lowmem.jobs.train import train
from tests.models.tiny import save_tiny

ARMS = {
    "adamw": {"set": {"method": {"kind": "full"}}, "learning_rate": [1e-2, 3e-2]},
    "lora": {"set": {"method": {"kind": "lora", "lora_r": 2}}, "learning_rate": [5e-2]},
}


def ignore(_: Any) -> None:
    pass


def write(folder: Path, **changes: Any) -> Path:
    for name, words in (("new", "the dog ran after it"), ("old", "one two three four five")):
        (folder / f"{name}.txt").write_text(f"{words}\n" * 6)
    text = {name: {"format": "text", "path": str(folder / f"{name}.txt"), "limit": 4} for name in ("new", "old")}
    config = {
        "model": str(save_tiny(folder / "base")),
        "dtype": "fp32",
        "dataset": [text["new"]],
        "eval_dataset": [text["new"], text["old"]],
        "max_length": 32,
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        "eval_steps": 1,
        "num_threads": 1,
        "device": "cpu",
        "output_dir": str(folder / "study"),
        "forgetting": {"arms": ARMS, "levels": 2},
    } | changes
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def entry(task: Any, state: str, error: str | None = None) -> Entry:
    job = task.job
    known = {"name": job.name, "folder": job.output_dir, "tags": job.tags, "point": job.point, "state": state}
    return Entry(**{**dict.fromkeys(Entry.__dataclass_fields__), **known, "error": error})  # type: ignore[arg-type]


def in_process(failing: Sequence[str] = ()) -> Any:
    """`batch.run` without processes: what is done already stays done."""

    def run(prepared: batch.Prepared, **_: Any) -> list[Entry]:
        entries = []
        for task in prepared.tasks.values():
            if task.job.name in failing:
                entries.append(entry(task, "failed", "it broke"))
                continue
            if not (Path(task.job.output_dir) / "model").is_dir():
                (Path(task.job.output_dir).parent).mkdir(parents=True, exist_ok=True)
                file = Path(task.job.output_dir).parent / f"{task.job.name}.yaml"
                file.write_text(task.config)
                train(load_run(file).config, sink=ignore)
            entries.append(entry(task, "done"))
        return entries

    return run


def go(path: Path, **keys: Any) -> ForgettingReport:
    return forgetting(load_run(path).config, sink=ignore, watch=ignore, **keys)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ForgettingReport]:
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "run", in_process())
        return folder, go(write(folder))


def test_one_config_becomes_a_grid_of_runs_and_a_report(study: tuple[Path, ForgettingReport]) -> None:
    folder, report = study
    assert sorted((cell.arm, cell.learning_rate, cell.seed) for cell in report.cells) == [
        ("adamw", 0.01, 42),
        ("adamw", 0.03, 42),
        ("lora", 0.05, 42),
    ]
    assert all(len(cell.points) == 2 for cell in report.cells), "one per evaluation"
    assert all(cell.divergence > 0 and cell.updates["spectral"] > 0 for cell in report.cells)
    assert {arm.arm for arm in report.summary.arms} == {"adamw", "lora"}
    assert set(report.activations) == {"old", "new"}
    lora = next(cell for cell in report.cells if cell.arm == "lora")
    assert lora.updates["stable_rank"] <= 2.01, "an adapter of rank two changes two directions"
    page = report.page.read_text()
    assert "<svg" in page
    assert "Forgetting at equal learning" in page
    assert json.loads((folder / "study" / "forgetting.json").read_text())["cells"][0]["arm"] == "adamw"


def test_learning_is_what_the_runs_recorded(study: tuple[Path, ForgettingReport]) -> None:
    from lowmem.train.record import read_metrics

    folder, report = study
    cell = report.cells[0]
    run = folder / "study" / "cells" / f"adamw-learning_rate={cell.learning_rate}-seed=42"
    losses = {r["split"]: r["metrics"]["loss"] for r in read_metrics(run / "metrics.jsonl") if r["event"] == "EvalDone"}
    assert cell.final.learning == pytest.approx(losses["before:new"] - losses["after:new"])
    assert cell.final.forgetting == pytest.approx(losses["after:old"] - losses["before:old"])


def test_a_second_call_measures_nothing_again(
    study: tuple[Path, ForgettingReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, first = study
    monkeypatch.setattr(batch, "run", in_process())
    monkeypatch.setattr(diagnosing, "load_model", None)
    monkeypatch.setattr(diagnosing, "open_target", None)
    assert go(folder / "study.yaml") == first


def test_runs_that_fail_are_named_and_the_others_reported(
    study: tuple[Path, ForgettingReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = study
    names = list(batch.prepare(folder / "study" / "jobs.yaml", sink=ignore).tasks)
    monkeypatch.setattr(batch, "run", in_process(failing=names[:1]))
    report = go(folder / "study.yaml")
    assert report.failed == {names[0]: "it broke"}
    assert len(report.cells) == 2
    assert "it broke" in report.page.read_text()
    monkeypatch.setattr(batch, "run", in_process(failing=names))
    with pytest.raises(ConfigError, match=r"no run of the grid came to an end; .*: it broke \(lowmem batch logs"):
        go(folder / "study.yaml")


def test_seeds_and_rates_are_a_matrix_of_training_jobs(tmp_path: Path) -> None:
    path = write(tmp_path, forgetting={"arms": ARMS, "seeds": [1, 2]})
    config = load_run(path).config
    assert config.forgetting is not None
    jobs = load_batch(diagnosing.write_batch(config, config.forgetting, tmp_path / "study")).spec.jobs
    assert jobs["adamw"].matrix == {"learning_rate": (0.01, 0.03), "seed": (1, 2)}
    assert load_run(tmp_path / "study" / "run.yaml").config.forgetting is None


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"forgetting": None}, "the config has no grid; add `forgetting: "),
        ({"eval_dataset": []}, "has 0 of the two datasets that are needed"),
        ({"learning_rate": 1e-3}, "is what the arms of forgetting vary; remove it"),
        (
            {"forgetting": {"arms": {"a": {"set": {"learning_rate": 1e-3}, "learning_rate": [1e-3]}}}},
            "learning_rate stands beside `set` and not in it",
        ),
        ({"forgetting": {"arms": {"a": {"learning_rate": [0.0]}}}}, "greater than 0"),
        ({"forgetting": {"arms": {}}}, r"forgetting\.arms"),
        ({"forgetting": {"arms": {"a": {"learning_rate": [1e-3], "sets": {}}}}}, r"arms.a.sets: is not a key"),
        ({"forgetting": {"arms": {"a": {"set": {"metod": "full"}, "learning_rate": [1e-3]}}}}, "did you mean method"),
    ],
    ids=["no grid", "nothing old", "a rate", "a rate in set", "rate zero", "no arm", "unknown key", "unknown run key"],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(
    changes: dict[str, Any], text: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=text):
        go(write(tmp_path, **changes))
    assert not (tmp_path / "study" / "cells").exists()


@pytest.mark.slow
def test_the_grid_runs_as_a_batch(tmp_path: Path) -> None:
    path = write(tmp_path, forgetting={"arms": {"adamw": {"learning_rate": [1e-2, 3e-2]}}})
    report = go(path)
    assert len(report.cells) == 2
    assert not report.failed
    assert {entry.state for entry in batch.status(tmp_path / "study" / "jobs.yaml")} == {"done"}
