"""The batches in configs/batch: every job of each is a config that could be trained, and the tiny ones are."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowmem.batch.matrix import expand
from lowmem.batch.spec import load_batch
from lowmem.batch.task import words_of
from lowmem.cli.batch import check_verb
from lowmem.config.load import load_run
from lowmem.config.presets import find_config
from lowmem.events import Event
from lowmem.jobs import batch

FILES = sorted((Path(__file__).resolve().parents[2] / "configs/batch").glob("*.yaml"))


def ignore(_: Event) -> None:
    pass


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_job_can_be_started(path: Path) -> None:
    jobs = expand(load_batch(path))
    for job in jobs:
        if job.kind == "train":
            load_run(find_config(str(job.target)), [*job.sets, f"output_dir={job.output_dir}"])
        else:
            check_verb([job.kind, *words_of(job)])


@pytest.mark.parametrize("pair", [("opt-1.3b-24gb", "tiny-methods"), ("reasoning-2bit", "tiny-reasoning")])
def test_the_tiny_version_has_the_same_jobs(pair: tuple[str, str]) -> None:
    large, small = (load_batch(next(path for path in FILES if path.stem == name)).spec.jobs for name in pair)
    assert [(name, job.kind) for name, job in large.items()] == [(name, job.kind) for name, job in small.items()]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["tiny-methods", "tiny-reasoning"])
def test_the_tiny_version_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = next(path for path in FILES if path.stem == name)
    path = tmp_path / source.name
    path.write_text(source.read_text())
    done = batch.run(batch.prepare(path, sink=ignore), watch=lambda _: None)
    assert {entry.state for entry in done} == {"done"}, [(entry.name, entry.error) for entry in done]
