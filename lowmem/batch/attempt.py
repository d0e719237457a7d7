"""One attempt at a job, as files in a folder of its own: started, watched, given up, ended (protocol: `child.py`)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowmem.batch import child
from lowmem.batch.processes import STALE_SECONDS, here, is_alive

LOG = "log.txt"
STDOUT = "result.json"


@dataclass(frozen=True)
class End:
    """How an attempt ended. `code`: of the job, 128 + signal when one ended it, 124 after its timeout."""

    code: int
    timed_out: bool
    started: float
    ended: float
    peak_bytes: int


@dataclass(frozen=True)
class Watcher:
    """The process that stays with the job, as it wrote itself down."""

    pid: int
    ticks: int
    here: str


def launch(
    folder: Path,
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    timeout: float | None,
    stdout: str | None = None,
    cwd: Path | None = None,
    outlives: bool = True,
) -> subprocess.Popen[bytes]:
    """The job of `argv` is being started. Its own session keeps Ctrl-C from it, and it outlives this process unless
    it should not."""
    folder.mkdir(parents=True, exist_ok=True)
    order = {
        "argv": list(argv),
        "env": dict(env),
        "timeout": timeout,
        "stdout": None if stdout is None else str(folder / stdout),
        "cwd": str(cwd or Path.cwd()),
        "parent": None if outlives else os.getpid(),
    }
    child.write_whole(str(folder / "launch.json"), json.dumps(order))
    # -I -S: nothing of the user's site is imported, which would take longer than all the rest.
    command = [sys.executable, "-I", "-S", child.__file__, str(folder)]
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def read_end(folder: Path) -> End | None:
    """How the attempt ended; None while it has not, and for ever when its watcher was killed."""
    found = _read(folder / "exit.json")
    return None if found is None else End(**found)


def read_watcher(folder: Path) -> Watcher | None:
    """Who watches the attempt; None when nobody has begun to, or it was given up."""
    found = _read(folder / "started.json")
    if found is None or found.get("given_up"):
        return None
    return Watcher(found["pid"], found["ticks"], found["here"])


def give_up(folder: Path) -> bool:
    """Whether the attempt will never start: nobody had begun it, and nobody can any more."""
    folder.mkdir(parents=True, exist_ok=True)
    return child.claim(str(folder), {"given_up": True})


def is_running(folder: Path) -> bool:
    """Whether the attempt's watcher lives: surely known here, by its heartbeat elsewhere."""
    watcher = read_watcher(folder)
    if watcher is None:
        return False
    if watcher.here == here():
        return is_alive(watcher.pid, watcher.ticks)
    try:
        return time.time() - (folder / "alive").stat().st_mtime < STALE_SECONDS
    except FileNotFoundError:
        return False


def send(folder: Path, number: signal.Signals) -> bool:
    """Whether `number` went to the job. SIGINT and SIGTERM pass the watcher by; SIGKILL ends both."""
    watcher = read_watcher(folder)
    if watcher is None or watcher.here != here() or not is_alive(watcher.pid, watcher.ticks):
        return False
    try:
        os.killpg(watcher.pid, number)
    except ProcessLookupError:
        return False
    return True


def last_lines(path: Path, count: int) -> list[str]:
    """The last `count` lines of a text file that may be large; none when there is no file."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 400 * count))
        return file.read().decode(errors="replace").splitlines()[-count:]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return found
