"""Runs one job and leaves its end on disk: `python child.py FOLDER`, where FOLDER/launch.json says what to run.

A runner may die at any moment, and its jobs go on: this small process stays with each of them. It imports nothing of
lowmem, so it starts in some 20 ms. The protocol, whose every file appears whole:

- `started.json` is linked into place by this process, or by a runner that gives the attempt up. Whoever comes second
  finds it there and does nothing, so an attempt that was given up never starts.
- `exit.json` holds exit code, times and peak memory, on disk before this process ends.
- `alive` is touched every few seconds, for runners on other machines.

The job dies with this process (PR_SET_PDEATHSIG), so a job without its watcher does not exist.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable

BEAT_SECONDS = 5.0
PR_SET_PDEATHSIG = 1
GRACE_SECONDS = 30.0
TIMED_OUT, NOT_STARTED, NOT_FOUND = 124, 125, 127

End = Callable[..., int]


def main(folder: str) -> int:
    """Exit code of the job, 128 + signal when one ended it; `NOT_STARTED` when the attempt was given up."""
    with open(os.path.join(folder, "launch.json")) as file:
        launch = json.load(file)
    if launch.get("parent") is not None and not _die_with(launch["parent"]):
        return NOT_STARTED
    started = time.time()
    record = {"pid": os.getpid(), "ticks": _start_ticks(), "here": _here(), "started": started}
    if not claim(folder, record):
        return NOT_STARTED
    # A handler, not SIG_IGN: what is ignored stays ignored in the job, which must hear these signals.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    pid = _start(launch, folder)

    def end(code: int, peak: int, *, timed_out: bool) -> int:
        code = TIMED_OUT if timed_out else code
        times = {"started": started, "ended": time.time()}
        _write_end(folder, {"code": code, "timed_out": timed_out, "peak_bytes": peak, **times})
        return code

    return _wait(pid, folder, launch.get("timeout"), end)


def claim(folder: str, record: dict) -> bool:  # type: ignore[type-arg]
    """Whether the attempt is now ours: `started.json` holds `record`. False when somebody else was first."""
    own = os.path.join(folder, f".started-{os.getpid()}")
    with open(own, "w") as file:
        json.dump(record, file)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(own, os.path.join(folder, "started.json"))
    except FileExistsError:
        return False
    finally:
        os.unlink(own)
    return True


def write_whole(path: str, text: str) -> None:
    """`path` holds `text`, on disk, or what it held before."""
    partial = f"{path}.partial"
    with open(partial, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _start(launch: dict, folder: str) -> int:  # type: ignore[type-arg]
    """The job's process: in our process group, its standard output and errors in files."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        if not _die_with(parent):
            os._exit(NOT_STARTED)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        log = os.open(os.path.join(folder, "log.txt"), flags, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(launch["stdout"], flags, 0o644) if launch.get("stdout") else log, 1)
        os.dup2(log, 2)
        os.chdir(launch["cwd"])
        os.execvpe(launch["argv"][0], launch["argv"], {**os.environ, **launch["env"]})
    except OSError as error:
        os.write(2, f"{launch['argv'][0]}: {error.strerror}\n".encode())
    finally:
        os._exit(NOT_FOUND)


def _die_with(parent: int) -> bool:
    """This process ends when `parent` does. False when that has happened already."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent


def _wait(pid: int, folder: str, timeout: float | None, end: End) -> int:
    """What `end` returns once the job has ended. Touches `alive` while it waits.

    At the timeout the job is asked to stop, so that training can save; 30 seconds later it is killed with all that it
    started, this process among them: so its end is written first.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    asked = False
    while True:
        _touch(os.path.join(folder, "alive"))
        left = BEAT_SECONDS if deadline is None else min(BEAT_SECONDS, max(0.0, deadline - time.monotonic()))
        signal.sigtimedwait({signal.SIGCHLD}, left)
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return end(code if code >= 0 else 128 - code, usage.ru_maxrss * 1024, timed_out=asked)
        if deadline is None or time.monotonic() < deadline:
            continue
        if asked:
            end(TIMED_OUT, _high_water(pid), timed_out=True)
            os.killpg(0, signal.SIGKILL)
        os.killpg(0, signal.SIGINT)
        asked, deadline = True, time.monotonic() + GRACE_SECONDS


def _write_end(folder: str, end: dict) -> None:  # type: ignore[type-arg]
    """`exit.json` is written. A full disk may be emptied: it is tried for a minute, after which the exit code of this
    process is all that is left."""
    for _ in range(60):
        try:
            return write_whole(os.path.join(folder, "exit.json"), json.dumps(end))
        except OSError as error:
            os.write(2, f"exit.json cannot be written: {error.strerror}\n".encode())
            time.sleep(1)
    return None


def _high_water(pid: int) -> int:
    """Peak resident bytes of a process that still runs."""
    with open(f"/proc/{pid}/status") as file:
        found = [line.split()[1] for line in file if line.startswith("VmHWM:")]
    return int(found[0]) * 1024 if found else 0


def _touch(path: str) -> None:
    with open(path, "a"):
        os.utime(path)


def _here() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"


def _start_ticks() -> int:
    with open("/proc/self/stat") as file:
        return int(file.read().rpartition(")")[2].split()[19])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
