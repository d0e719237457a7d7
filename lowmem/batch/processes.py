"""Which process is which, for certain, also after its number was given to another one and after a reboot.

A process is known by its number and its start in clock ticks since the boot, and the numbers mean something only within
one boot of one machine and one container (`here`). Anything recorded elsewhere is judged by its heartbeat.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from lowmem.errors import ConfigError

_PROC = Path("/proc")
STALE_SECONDS = 60.0
"""A heartbeat of another machine or boot that is older counts as a death; beats come every 5 seconds."""


@lru_cache(maxsize=1)
def here() -> str:
    """A name of this boot of this machine and its process numbers. Raises `ConfigError` where there is no /proc."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink(_PROC / 'self/ns/pid')}"
    except OSError as error:
        raise ConfigError(
            f"batch: runners know their processes through /proc, which cannot be read here ({error.strerror}); "
            "run the batch on Linux, or write its jobs out with `lowmem batch export`"
        ) from error


def start_ticks(pid: int) -> int | None:
    """When process `pid` started, in ticks since the boot; None when there is none, or only its exit status is left."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold anything, so fields are counted from the last parenthesis.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def resident_bytes(pid: int) -> int:
    """Memory in use by the job that `pid` watches: its whole process group without the watcher, which adds some 10
    MiB, mostly pages that all interpreters share."""
    total = 0
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == pid and entry.name != str(pid):
            total += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    return total


def is_alive(pid: int, ticks: int) -> bool:
    """Whether the very process that was recorded as `pid`, started at `ticks`, still runs here."""
    return start_ticks(pid) == ticks
