"""`lowmem batch`: a file of jobs in, all of them done, and a ledger that says how each went."""

from __future__ import annotations

import fnmatch
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowmem.batch.attempt import LOG, send
from lowmem.batch.engine import Engine, LocalEngine
from lowmem.batch.ledger import Entry, Ledger
from lowmem.batch.runner import Runner, Watch
from lowmem.batch.spec import BatchFile, load_batch
from lowmem.batch.task import Task, words_of
from lowmem.batch.verbs import COMMAND
from lowmem.config.explain import did_you_mean
from lowmem.errors import BudgetError, ConfigError
from lowmem.events import Sink
from lowmem.jobs.batch_plan import budget_of, make_tasks
from lowmem.units import format_bytes

Check = Callable[[Sequence[str]], None]
"""Raises `ConfigError` when the command line, from the verb on, could not be run."""


@dataclass(frozen=True)
class Prepared:
    """A batch whose every job was checked and planned."""

    file: BatchFile
    tasks: dict[str, Task]
    budget: int

    @property
    def too_large(self) -> list[Task]:
        return [task for task in self.tasks.values() if task.too_large is not None]


def state_folder(path: Path) -> Path:
    """Where a batch keeps its ledger, its logs and its attempts: beside its file."""
    return path.with_name(f"{path.stem}.batch")


def open_ledger(path: Path) -> Ledger:
    """The ledger of a batch that was run before. Raises `ConfigError` when it never was."""
    file = state_folder(path) / "ledger.db"
    if not file.is_file():
        raise ConfigError(f"{path}: was never run, so nothing is known of it; start it with `lowmem batch run {path}`")
    return Ledger(file)


def prepare(path: Path, *, sink: Sink, budget: str | None = None, check: Check | None = None) -> Prepared:
    """Everything that can be known before the first job starts. Raises `ConfigError` with all problems at once."""
    file = load_batch(path)
    limit = budget_of(file, budget)
    tasks = make_tasks(file, budget=limit, sink=sink)
    if check is not None:
        _check_all(tasks, check)
    return Prepared(file, tasks, limit)


def _check_all(tasks: dict[str, Task], check: Check) -> None:
    """Raises `ConfigError` with the jobs whose options their verbs do not have."""
    problems = []
    for task in tasks.values():
        job = task.job
        if job.kind == COMMAND:
            continue
        try:
            words = words_of(job) if task.config is None else [str(job.target), *job.args]
            check([job.kind, *words])
        except ConfigError as error:
            problems.append(f"{job.name}: {error}")
    if problems:
        raise ConfigError("\n".join(problems))


def run(prepared: Prepared, *, watch: Watch, max_parallel: int | None = None, partly: bool = False) -> list[Entry]:
    """All jobs are over, or wait for one that failed. With `partly`, those that cannot fit are left out.

    Raises `BudgetError` with every bill that is too large unless `partly`, `Interrupted` after a signal, and
    `ConfigError` while another runner works on this batch.
    """
    refuse_too_large(prepared, partly=partly)
    return _run(
        prepared,
        LocalEngine(),
        budget=prepared.budget,
        slots=max_parallel or prepared.file.spec.max_parallel or os.cpu_count() or 1,
        watch=watch,
    )


def run_on_ray(
    prepared: Prepared,
    *,
    address: str | None,
    watch: Watch,
    max_parallel: int | None = None,
    partly: bool = False,
) -> list[Entry]:
    """`run`, with the jobs on the Ray cluster at `address`, or on one that is started on this machine.

    What fits is Ray's to say: the memory of a node, or of a GPU (`memory_budget` of the file) where nodes have GPUs.
    """
    from lowmem.batch.ray_runner import RayEngine

    refuse_too_large(prepared, partly=partly)
    with RayEngine(address, gpu_bytes=prepared.budget) as engine:
        large = [task for task in prepared.tasks.values() if (task.need or 0) > engine.largest]
        if large:
            needs = ", ".join(f"{task.job.name} needs {format_bytes(task.need or 0)}" for task in large)
            raise BudgetError(f"{needs}; the largest node of the Ray cluster has {format_bytes(engine.largest)}")
        return _run(
            prepared,
            engine,
            budget=engine.memory,
            slots=max_parallel or prepared.file.spec.max_parallel or engine.slots,
            watch=watch,
        )


def _run(prepared: Prepared, engine: Engine, *, budget: int, slots: int, watch: Watch) -> list[Entry]:
    spec = prepared.file.spec
    folder = state_folder(prepared.file.path)
    ledger = Ledger(folder / "ledger.db")
    try:
        return Runner(
            ledger,
            prepared.tasks,
            folder.absolute() / "attempts",
            budget,
            max_parallel=slots,
            continue_on_error=spec.continue_on_error,
            watch=watch,
            engine=engine,
        ).run()
    finally:
        ledger.close()


def refuse_too_large(prepared: Prepared, *, partly: bool) -> None:
    """Raises `BudgetError` with the bills of the jobs that cannot fit, unless the others are to run without them."""
    if prepared.too_large and not partly:
        bills = "\n".join(f"{task.job.name}: {task.too_large}" for task in prepared.too_large)
        raise BudgetError(f"{bills}\nnothing was started; run the others with --partly, or change these jobs")


def status(path: Path) -> list[Entry]:
    """Every job of a batch that was run before."""
    ledger = open_ledger(path)
    try:
        return ledger.entries()
    finally:
        ledger.close()


def cancel(path: Path, names: Sequence[str]) -> list[str]:
    """The jobs stop, or never start; returns their names. A runner does it, or, where none lives, it is done here."""
    ledger = open_ledger(path)
    try:
        chosen = [entry for entry in select(ledger.entries(), names) if entry.state in ("waiting", "running")]
        if not chosen:
            raise ConfigError(f"{', '.join(names)}: is neither waiting nor running, so there is nothing to cancel")
        ledger.ask_to_cancel([entry.name for entry in chosen])
        if not ledger.runner_lives():
            for entry in chosen:
                if entry.state == "waiting":
                    ledger.put(entry.name, "cancelled", error="cancelled before it started")
                else:
                    send(attempt_folder(path, entry), signal.SIGINT)
        return [entry.name for entry in chosen]
    finally:
        ledger.close()


def retry(path: Path, names: Sequence[str], *, failed: bool) -> list[str]:
    """The named jobs, or all that failed, wait again, and so do those that wait for them. Returns their names."""
    ledger = open_ledger(path)
    try:
        entries = ledger.entries()
        again = ("failed", "cancelled", "too_large", "blocked")
        chosen = [entry for entry in select(entries, names) if entry.state in again] if names else []
        if failed:
            chosen += [entry for entry in entries if entry.state == "failed"]
        if not chosen:
            raise ConfigError("batch retry: nothing to retry; name jobs that failed or were cancelled, or use --failed")
        waiting: set[str] = set()
        more = {entry.name for entry in chosen}
        while more:  # down the chains of those that wait for them
            waiting |= more
            more = {e.name for e in entries if e.state == "blocked" and waiting & set(e.after)} - waiting
        ledger.retry(sorted(waiting))
        return [entry.name for entry in entries if entry.name in waiting]
    finally:
        ledger.close()


def select(entries: Sequence[Entry], names: Sequence[str]) -> list[Entry]:
    """The jobs of these names; `tune-*` and `tag:quick` name several. Raises `ConfigError` for a name of none."""
    chosen: list[Entry] = []
    for name in names:
        tag = name.removeprefix("tag:") if name.startswith("tag:") else None
        found = [e for e in entries if (tag in e.tags if tag is not None else fnmatch.fnmatch(e.name, name))]
        if not found:
            known = [entry.name for entry in entries]
            raise ConfigError(f"{name}: is no job{did_you_mean(name, known)}; there are {', '.join(known)}")
        chosen += [entry for entry in found if entry not in chosen]
    return chosen


def attempt_folder(path: Path, entry: Entry) -> Path:
    """The files of a job's latest attempt."""
    return state_folder(path).absolute() / "attempts" / entry.name / str(entry.attempts)


def log_path(path: Path, job: str, *, attempt: int | None = None) -> Path:
    """The log of a job's latest attempt, or of the given one. Raises `ConfigError` when there is none yet."""
    ledger = open_ledger(path)
    try:
        (entry,) = select(ledger.entries(), [job])[:1]
    finally:
        ledger.close()
    number = attempt or entry.attempts
    log = state_folder(path).absolute() / "attempts" / entry.name / str(number) / LOG
    if not log.is_file():
        raise ConfigError(f"{job}: has no log of attempt {number}; it was started {entry.attempts} times")
    return log
