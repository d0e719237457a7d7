"""A job ready to run: its command line, what it is known by, and what it left behind."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowmem.batch.attempt import LOG, STDOUT, last_lines
from lowmem.batch.ledger import Entry, Listing
from lowmem.batch.matrix import Job
from lowmem.batch.verbs import COMMAND, VERBS

CONFIG = "config.yaml"
SEARCH = "search.json"


@dataclass(frozen=True)
class SearchOrder:
    """What a search is told. `evaluations`: how often a whole run evaluates; `need`: bytes of one trial."""

    config: str
    folder: str
    search: dict[str, Any]
    evaluations: int
    need: int | None
    at_once: int
    cwd: str = ""
    """Where relative paths of the config begin: Tune's workers stand elsewhere."""


@dataclass(frozen=True)
class Task:
    """`config`: the resolved config as YAML, for verbs that take one. `need`: predicted bytes, None when unknown."""

    job: Job
    config: str | None
    digest: str
    need: int | None
    too_large: str | None
    search: SearchOrder | None = None

    def listing(self) -> Listing:
        job = self.job
        folder = str(Path(job.output_dir).absolute())
        return Listing(
            job.name, job.kind, self.digest, self.need, self.too_large, folder, job.after, job.tags, job.point
        )


def digest(job: Job, config: str | None, upstream: Sequence[str]) -> str:
    """Changes when the job would do something else, or one of those before it would."""
    asked = {
        "kind": job.kind,
        "target": job.target if config is None else None,
        "config": config,
        "sets": job.sets if config is None else (),
        "args": job.args,
        "env": dict(job.env),
        "output_dir": job.output_dir,
        "search": None if job.search is None else job.search.model_dump(mode="json"),
        "after": sorted(upstream),
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]


def prepare_folder(task: Task, entry: Entry, attempts: Sequence[Mapping[str, Any]]) -> None:
    """The job's folder is as this attempt needs it: the run of former settings is gone, its own is kept."""
    folder = Path(entry.folder)
    verb = VERBS.get(task.job.kind)
    if verb is None or not verb.resumes:
        if verb is None or verb.output is None:
            folder.mkdir(parents=True, exist_ok=True)
        elif any(attempt["outcome"] == "done" for attempt in attempts):
            shutil.rmtree(folder, ignore_errors=True)  # what it made before, which it would refuse to replace
        return
    mine = (folder / CONFIG).is_file() or (folder / SEARCH).is_file()
    if attempts and attempts[-1]["digest"] != task.digest and mine:
        shutil.rmtree(folder)
    if task.search is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SEARCH).write_text(json.dumps(task.search.search))
        return
    if folder.is_dir() and not (folder / CONFIG).exists():
        # A run that was killed while it wrote its first file holds nothing, but would not be taken for empty.
        (folder / f".partial-{CONFIG}").unlink(missing_ok=True)


def command_line(task: Task, entry: Entry, attempt: Path) -> list[str]:
    """What is executed. The config of a verb that takes one is written into the attempt's folder."""
    job = task.job
    if job.kind == COMMAND:
        return ["/bin/sh", "-c", job.target] if isinstance(job.target, str) else list(job.target)
    if task.search is not None and task.config is not None:
        attempt.mkdir(parents=True, exist_ok=True)
        (attempt / CONFIG).write_text(task.config)
        order = dataclasses.replace(task.search, config=str(attempt / CONFIG), folder=entry.folder, cwd=os.getcwd())
        (attempt / SEARCH).write_text(json.dumps(dataclasses.asdict(order)))
        return [sys.executable, "-m", "lowmem.batch.search", str(attempt / SEARCH)]
    verb = VERBS[job.kind]
    line = [sys.executable, "-m", "lowmem", job.kind]
    if task.config is not None:
        attempt.mkdir(parents=True, exist_ok=True)
        (attempt / CONFIG).write_text(task.config)
        line.append(str(attempt / CONFIG))
    else:
        line += words_of(job)
    if verb.resumes and (Path(entry.folder) / CONFIG).is_file() and entry.attempts:
        line.append("--resume")
    return [*line, *(job.args if task.config is not None else ()), *(["--json"] if verb.json else [])]


def words_of(job: Job) -> list[str]:
    """What follows a verb that works on a model: the model, changed keys, where to write, options."""
    output = VERBS[job.kind].output
    where = [] if output is None else [output, job.output_dir] if output.startswith("--") else [output + job.output_dir]
    return [str(job.target), *job.sets, *where, *job.args]


def stdout_of(job: Job) -> str | None:
    """The file of its own that the job's standard output goes to; None where it belongs into the log."""
    return STDOUT if job.kind in VERBS and VERBS[job.kind].json else None


def environment_of(job: Job) -> dict[str, str]:
    """What the job's processes see besides the user's own environment."""
    return {**job.env, "LOWMEM_JOB": job.name, "LOWMEM_OUTPUT_DIR": job.output_dir}


def result_of(job: Job, attempt: Path) -> dict[str, Any] | None:
    """What the job reported: the JSON that its verb prints, or that the last line of a command's output is."""
    if stdout_of(job) is not None:
        path = attempt / STDOUT
        return _object(path.read_text()) if path.is_file() else None
    lines = last_lines(attempt / LOG, 1)
    return _object(lines[-1]) if lines and job.kind == COMMAND else None


def why(code: int, timed_out: bool, attempt: Path) -> str:
    """One line on a failure: the exit code, and the last thing the job said."""
    said = [line.strip() for line in last_lines(attempt / LOG, 20) if line.strip()]
    errors = [line for line in said if line.startswith("error:")]
    last = (errors or said or ["it said nothing"])[-1][:300]
    if timed_out:
        return f"did not end within its timeout; last line: {last}"
    return f"ended by signal {code - 128}; last line: {last}" if code > 128 else f"exit code {code}: {last}"


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
