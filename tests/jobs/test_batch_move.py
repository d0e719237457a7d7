from __future__ import annotations

from pathlib import Path

import pytest

from lowmem.config.load import load_run
from lowmem.errors import ConfigError
from lowmem.events import Event
from lowmem.jobs import batch
from lowmem.jobs.batch_move import export, import_runs
from tests.batch.batches import write
from tests.report.runs import finished_run, write_run

TEXT = """
jobs:
  a: {train: run.yaml, memory: 1MiB}
  b: {train: run.yaml, set: {learning_rate: 1e-5}, memory: 1MiB}
  c: {command: echo done, after: a}
"""


def ignore(_: Event) -> None:
    pass


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> batch.Prepared:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "model: m\ndataset: d.jsonl\nlearning_rate: 2e-05\n", "run.yaml")
    return batch.prepare(write(tmp_path, TEXT), sink=ignore)


def test_finished_runs_from_elsewhere_are_done_and_the_others_are_left(
    prepared: batch.Prepared, tmp_path: Path
) -> None:
    config = load_run(tmp_path / "run.yaml", ["output_dir=elsewhere", "device=cuda"]).config
    same = write_run(tmp_path / "elsewhere/a", finished_run(), run_config=config)
    other = write_run(tmp_path / "elsewhere/b", finished_run(), run_config=config)
    unfinished = write_run(tmp_path / "more/a", finished_run()[:-1], run_config=config)
    unknown = write_run(tmp_path / "elsewhere/z", finished_run(), run_config=config)
    found = import_runs(prepared, [unfinished, same, same, other, unknown])
    assert [row.reason for row in found] == [
        "the run is not finished",
        "imported",
        "a is done already",
        "the run's learning_rate differ from the job's",
        "no training job of this batch has a folder named z",
    ]
    (tmp_path / "jobs.yaml").write_text(TEXT.replace("  b: ", "  #b: "))
    states = {e.name: e for e in batch.run(batch.prepare(tmp_path / "jobs.yaml", sink=ignore), watch=lambda _: None)}
    assert {e.state for e in states.values()} == {"done"}
    assert states["a"].attempts == 0, "it was not run here"
    assert states["a"].result is not None
    assert states["a"].result["after"] == {"held-out": {"loss": 1.5, "exact_match": 0.75}}
    assert (tmp_path / "runs/jobs/a/metrics.jsonl").is_file()


def test_export_writes_a_new_folder_only(prepared: batch.Prepared, tmp_path: Path) -> None:
    files = export(prepared, tmp_path / "slurm", to="slurm")
    assert files[0] == tmp_path / "slurm/submit.sh"
    assert all(path.is_file() for path in files)
    assert export(prepared, tmp_path / "sky", to="skypilot")[0].suffix == ".yaml"
    with pytest.raises(ConfigError, match="slurm is not empty; choose a new folder"):
        export(prepared, tmp_path / "slurm", to="slurm")
    with pytest.raises(ConfigError, match="--to k8s is none of slurm, skypilot"):
        export(prepared, tmp_path / "new", to="k8s")
