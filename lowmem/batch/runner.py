"""Runs the jobs of a batch on this machine, each a process of its own, side by side as far as memory allows.

The ledger and the attempts' folders are all the state there is, so a runner that was killed is replaced by starting
another. Jobs outlive their runner; the next one finds them running and waits for them, or finds how they ended. An
attempt is written down before it is begun, and begun by one process only (`child.py`), so no job is lost and none is
run to its end twice.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowmem.batch.attempt import LOG, End, give_up, is_running, read_end, read_watcher
from lowmem.batch.engine import Engine, Handle, Left, LocalEngine
from lowmem.batch.ledger import Entry, Ledger, State
from lowmem.batch.schedule import decide
from lowmem.batch.task import Task, command_line, prepare_folder, result_of, why
from lowmem.errors import Interrupted

Watch = Callable[[Sequence[Entry]], None]
"""Called with all jobs whenever something changed, and a few times a second while anything runs."""

HOPELESS = frozenset({2, 3, 5})
"""Exit codes that come again: bad config, does not fit, failed quality gate."""
VANISHED = 5
"""Attempts whose process may vanish with its machine before the job counts as failed."""
BEAT_SECONDS, KILL_SECONDS = 5.0, 60.0
YOUNG_SECONDS = 3.0
"""Jobs younger than this are looked at often: short ones end soon."""


@dataclass
class Running:
    """A job that runs. `asked` is when it was told to stop."""

    folder: Path
    since: float
    handle: Handle
    asked: float | None = None


@dataclass
class Stop:
    """How often the batch was told to stop: once is gently, twice is at once."""

    times: int = 0


@dataclass
class Runner:
    """One run of the batch. `attempts` is the folder of the attempts' folders."""

    ledger: Ledger
    tasks: Mapping[str, Task]
    attempts: Path
    budget: int
    max_parallel: int = field(default_factory=lambda: os.cpu_count() or 1)
    continue_on_error: bool = True
    watch: Watch = lambda _: None
    watch_seconds: float = 0.5
    engine: Engine = field(default_factory=LocalEngine)
    _running: dict[str, Running] = field(default_factory=dict)
    _entries: dict[str, Entry] = field(default_factory=dict)
    _stop: Stop = field(default_factory=Stop)

    def run(self) -> list[Entry]:
        """Every job is over, or waits for something that failed. Returns all of them.

        Raises `Interrupted` after a signal, once every running job has saved and ended, and `ConfigError` while
        another runner works on this batch.
        """
        self.ledger.take()
        try:
            with stop_signals(self._stop):
                settle(self.ledger, self.tasks, self.attempts)
                self.ledger.list_jobs([task.listing() for task in self.tasks.values()])
                self._adopt()
                self._loop()
        finally:
            self.ledger.release()
        if self._stop.times:
            raise Interrupted("the batch was stopped; its jobs have saved what they can save. The same command goes on")
        return self.ledger.entries()

    def _loop(self) -> None:
        beat = watched = 0.0
        version = -1
        changed = True
        while True:
            now = time.monotonic()
            if now - beat >= BEAT_SECONDS:
                self.ledger.beat()
                beat = now
            if changed or self.ledger.version() != version:
                version, changed = self.ledger.version(), False
                self._entries = {entry.name: entry for entry in self.ledger.entries()}
                changed |= self._cancel()
                changed |= self._advance()
                watched = 0.0
            changed |= self._collect()
            self._insist()
            if now - watched >= self.watch_seconds:
                self.watch(self.ledger.entries())
                watched = now
            if changed:
                continue
            if not self._running:
                self.watch(self.ledger.entries())
                return
            young = any(now - job.since < YOUNG_SECONDS for job in self._running.values())
            time.sleep(0.02 if young else 0.2)

    def _advance(self) -> bool:
        """Whether anything was started or given up."""
        decision = decide(
            list(self._entries.values()),
            budget=self.budget,
            max_parallel=self.max_parallel,
            continue_on_error=self.continue_on_error,
            stopping=self._stop.times > 0,
        )
        for name, reason in decision.block.items():
            self.ledger.put(name, "blocked", error=reason)
        for name in decision.start:
            self._start(self.tasks[name], self._entries[name])
        return bool(decision.start or decision.block)

    def _start(self, task: Task, entry: Entry) -> None:
        job = task.job
        prepare_folder(task, entry, self.ledger.attempts(job.name))
        number = self.ledger.start(job.name, log=str(self.attempts / job.name / "{attempt}" / LOG))
        folder = self.attempts / job.name / str(number)
        handle = self.engine.start(task, folder, command_line(task, entry, folder))
        self._running[job.name] = Running(folder, time.monotonic(), handle)

    def _adopt(self) -> None:
        """Jobs that an earlier runner left running are watched again."""
        for entry in self.ledger.entries():
            if entry.state == "running":
                folder = self.attempts / entry.name / str(entry.attempts)
                self._running[entry.name] = Running(folder, time.monotonic(), Left(folder))

    def _collect(self) -> bool:
        """Whether any job has ended; each that has is in the ledger with its outcome."""
        ended = [(name, job) for name, job in self._running.items() if not job.handle.goes_on()]
        for name, job in ended:
            del self._running[name]
            end = read_end(job.folder)
            code = job.handle.code()
            if end is None and code is not None:  # the disk was too full for exit.json
                end = End(code, False, 0.0, 0.0, 0)
            record(self.ledger, self.tasks.get(name), self._entries[name], job.folder, end, stopping=job.asked)
        return bool(ended)

    def _cancel(self) -> bool:
        """Whether a waiting job was cancelled; running ones are asked to stop."""
        asked = [entry for entry in self._entries.values() if entry.cancel]
        for entry in asked:
            if entry.state == "running":
                self._ask(entry.name)
            elif entry.state in ("waiting", "blocked"):
                self.ledger.put(entry.name, "cancelled", error="cancelled before it started")
        return any(entry.state in ("waiting", "blocked") for entry in asked)

    def _ask(self, name: str) -> None:
        job = self._running.get(name)
        if job is not None and job.asked is None and job.handle.send(signal.SIGINT):
            job.asked = time.monotonic()

    def _insist(self) -> None:
        """Jobs that were told to stop and did not are killed."""
        if self._stop.times:
            for name in self._running:
                self._ask(name)
        for job in self._running.values():
            late = job.asked is not None and time.monotonic() - job.asked > KILL_SECONDS
            if late or self._stop.times > 1:
                job.handle.send(signal.SIGKILL)


def settle(ledger: Ledger, tasks: Mapping[str, Task], attempts: Path) -> None:
    """What the ledger says is running does run: how the rest ended is written down, and what never began waits."""
    for entry in ledger.entries():
        if entry.state != "running":
            continue
        folder = attempts / entry.name / str(entry.attempts)
        if is_running(folder):
            continue
        end = read_end(folder)
        if end is None and read_watcher(folder) is None:
            if give_up(folder):
                ledger.end(entry.name, "cancelled" if entry.cancel else "waiting", outcome="not begun")
                continue
            if read_watcher(folder) is not None:  # it began between the two looks
                continue
        record(ledger, tasks.get(entry.name), entry, folder, end, stopping=None)


def record(
    ledger: Ledger, task: Task | None, entry: Entry, folder: Path, end: End | None, *, stopping: float | None
) -> None:
    """The end of an attempt is in the ledger, and with it what happens to the job next."""
    if end is None:
        _record_loss(ledger, entry, stopping=stopping is not None)
        return
    known: dict[str, Any] = {
        "exit_code": end.code,
        "peak_bytes": end.peak_bytes,
        "seconds": max(0.0, end.ended - end.started),
    }
    if end.code == 0 and not end.timed_out:
        result = None if task is None else result_of(task.job, folder)
        ledger.end(entry.name, "done", outcome="done", result=result, **known)
    elif entry.cancel:
        ledger.end(entry.name, "cancelled", outcome="cancelled", error="cancelled while it ran", **known)
    elif stopping is not None:
        ledger.end(entry.name, "waiting", outcome="interrupted", **known)
    else:
        retries = 0 if task is None else task.job.retries
        again = entry.failures < retries and end.code not in HOPELESS
        error = why(end.code, end.timed_out, folder)
        state: State = "waiting" if again else "failed"
        ledger.end(entry.name, state, outcome="failed", error=error, failed=True, **known)


def _record_loss(ledger: Ledger, entry: Entry, *, stopping: bool) -> None:
    """An attempt without an end: its machine went down, or its processes were killed with their watcher."""
    lost = sum(attempt["outcome"] == "lost" for attempt in ledger.attempts(entry.name)) + 1
    if entry.cancel:
        ledger.end(entry.name, "cancelled", outcome="lost", error="cancelled while it ran")
    elif stopping:
        ledger.end(entry.name, "waiting", outcome="interrupted")
    elif lost >= VANISHED:
        error = f"its process vanished {lost} times without a trace; is the machine out of memory?"
        ledger.end(entry.name, "failed", outcome="lost", error=error, failed=True)
    else:
        ledger.end(entry.name, "waiting", outcome="lost")


@contextmanager
def stop_signals(stop: Stop) -> Iterator[None]:
    """SIGINT and SIGTERM are counted in `stop`."""
    before: dict[signal.Signals, Any] = {}

    def request(_number: int, _frame: object) -> None:
        stop.times += 1

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, request)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
