"""Where a quantization keeps its coded blocks until it is done: a hidden folder beside the output for each request.

Only the process that holds the folder's lock writes into it or removes it.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lowmem.errors import ConfigError

KEY = 12
"""Hexadecimal digits of the request's key in the folder's name."""


@contextmanager
def working_folder(output: Path, key: str) -> Iterator[Path]:
    """The folder of this request, for this process alone. Raises `ConfigError` while another process works in it."""
    work = output.absolute().with_name(f".quantizing-{output.name}-{key[:KEY]}")
    work.mkdir(parents=True, exist_ok=True)
    with _held(work) as held:
        if not held:
            raise ConfigError(f"another process is quantizing the same to {output}; wait for it to end")
        yield work


@contextmanager
def _held(work: Path) -> Iterator[bool]:
    """Whether this process alone works in `work` inside."""
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def forget_others(output: Path) -> None:
    """Removes what earlier requests with other options left for `output`, unless a process is at work there."""
    for left in output.absolute().parent.glob(f".quantizing-{output.name}-" + KEY * "[0-9a-f]"):
        with _held(left) as held:
            if held:
                shutil.rmtree(left, ignore_errors=True)
