"""Where a job runs: as a process of this machine, or one that was left there by a runner that is gone."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lowmem.batch import child
from lowmem.batch.attempt import is_running, launch, send
from lowmem.batch.task import Task, environment_of, stdout_of


class Handle(Protocol):
    """A job that was started: `code` is None while it goes on, and when it ended where nobody saw how."""

    def goes_on(self) -> bool: ...
    def code(self) -> int | None: ...
    def send(self, number: signal.Signals) -> bool: ...


class Engine(Protocol):
    """Where jobs are started."""

    def start(self, task: Task, folder: Path, argv: Sequence[str]) -> Handle: ...


@dataclass(frozen=True)
class Left:
    """A job that an earlier runner started: its files are all that is known of it."""

    folder: Path

    def goes_on(self) -> bool:
        return is_running(self.folder)

    def code(self) -> int | None:
        return None

    def send(self, number: signal.Signals) -> bool:
        return send(self.folder, number)


@dataclass(frozen=True)
class Child:
    """A job on this machine, whose watcher is our own child."""

    folder: Path
    process: subprocess.Popen[bytes]

    def goes_on(self) -> bool:
        return self.process.poll() is None

    def code(self) -> int | None:
        code = self.process.returncode
        return None if code == child.NOT_STARTED else code if code >= 0 else 128 - code

    def send(self, number: signal.Signals) -> bool:
        return send(self.folder, number)


class LocalEngine:
    """Every job is a process on this machine."""

    def start(self, task: Task, folder: Path, argv: Sequence[str]) -> Child:
        job = task.job
        env = environment_of(job)
        return Child(folder, launch(folder, argv, env=env, timeout=job.timeout, stdout=stdout_of(job)))
