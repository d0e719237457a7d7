"""Batches of commands, which need no torch: `python -m tests.batch.batches JOBS.YAML` runs them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowmem.batch.ledger import Entry, Ledger
from lowmem.batch.matrix import Job, expand
from lowmem.batch.runner import Runner
from lowmem.batch.spec import load_batch
from lowmem.batch.task import Task, digest
from lowmem.errors import LowmemError
from lowmem.units import parse_bytes

GIB = 2**30


def tasks_of(path: Path) -> dict[str, Task]:
    """The commands of a file as tasks, in its order."""
    made: dict[str, Task] = {}
    jobs = expand(load_batch(path))
    while len(made) < len(jobs):
        for job in jobs:
            if job.name not in made and all(name in made for name in job.after):
                known = digest(job, None, [made[name].digest for name in job.after])
                made[job.name] = Task(job, None, known, job.memory, None)
    return {job.name: made[job.name] for job in jobs}


def runner_of(path: Path, **keys: Any) -> Runner:
    """A runner of the commands in a file, with the state beside it."""
    spec = load_batch(path).spec
    folder = path.with_name(f"{path.stem}.batch").absolute()
    budget = parse_bytes(spec.memory_budget) if spec.memory_budget else GIB
    known = {"budget": budget, "max_parallel": spec.max_parallel or 4, "continue_on_error": spec.continue_on_error}
    return Runner(Ledger(folder / "ledger.db"), tasks_of(path), folder / "attempts", **{**known, **keys})


def run(path: Path, **keys: Any) -> dict[str, Entry]:
    """All jobs of the file after a run, by name."""
    runner = runner_of(path, **keys)
    try:
        return {entry.name: entry for entry in runner.run()}
    finally:
        runner.ledger.close()


def write(folder: Path, text: str, name: str = "jobs.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def job(name: str = "a", **keys: Any) -> Job:
    """A job that does nothing."""
    plain: dict[str, Any] = {
        "name": name,
        "base": name,
        "kind": "command",
        "target": "true",
        "sets": (),
        "args": (),
        "env": {},
        "after": (),
        "output_dir": f"runs/{name}",
        "point": {},
        "tags": (),
        "retries": 0,
        "timeout": None,
        "memory": None,
        "search": None,
    }
    return Job(**{**plain, **keys})


def entry(name: str = "a", **keys: Any) -> Entry:
    """A job that waits."""
    plain: dict[str, Any] = {
        "name": name,
        "position": 0,
        "kind": "command",
        "digest": "d",
        "state": "waiting",
        "attempts": 0,
        "failures": 0,
        "started": None,
        "ended": None,
        "seconds": 0.0,
        "predicted_bytes": None,
        "peak_bytes": None,
        "exit_code": None,
        "error": None,
        "result": None,
        "folder": f"runs/{name}",
        "log": None,
        "after": (),
        "tags": (),
        "point": {},
        "cancel": False,
    }
    return Entry(**{**plain, **keys})


def main(argv: Sequence[str]) -> int:
    try:
        run(Path(argv[0]))
    except LowmemError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
