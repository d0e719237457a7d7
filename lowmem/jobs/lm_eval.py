"""`lowmem eval --lm-eval TASK`: EleutherAI's tasks on our own scoring and decoding."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from lowmem.errors import ConfigError
from lowmem.events import EvalDone, Sink
from lowmem.jobs.target import DtypeName, open_target


def evaluate_tasks(
    target: str,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    batch_size: int = 8,
    device: str = "auto",
    dtype: DtypeName | None = None,
    sink: Sink,
) -> dict[str, dict[str, float]]:
    """Metrics by task. A task is a name that `lm-eval` knows, or a task file of one's own (.yaml).

    Raises `ConfigError` where `lm-eval` is not installed, or knows no such task, before the model is loaded.
    """
    names, folders = zip(*(_named(task) for task in tasks), strict=True)
    try:
        from lowmem.evaluate.harness import run_tasks
    except ImportError as error:
        raise ConfigError(
            f"--lm-eval needs {error.name}, which is not installed: pip install 'lowmem[lm-eval]'"
        ) from error
    opened = open_target(target, sink=sink, device=device, dtype=dtype)
    started = time.monotonic()
    own = sorted({folder for folder in folders if folder is not None})
    model, tokenizer = opened.loaded.model, opened.loaded.tokenizer
    found = run_tasks(
        model, tokenizer, names, folders=own, only_own=None not in folders, limit=limit, batch_size=batch_size
    )
    for name, metrics in found.items():
        sink(EvalDone(step=0, split=name, metrics=metrics, seconds=time.monotonic() - started))
    return found


def _named(task: str) -> tuple[str, str | None]:
    """The task's name and, for a file, its folder. Raises `ConfigError` for a file that is none."""
    path = Path(task)
    if path.suffix not in (".yaml", ".yml"):
        return task, None
    if not path.is_file():
        raise ConfigError(
            f"--lm-eval {task}: there is no such file; give a task file, or a name from `lm-eval ls tasks`"
        )
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Lenient)
    except yaml.YAMLError as error:
        raise ConfigError(f"--lm-eval {task}: is no YAML: {error}") from error
    name = content.get("task") if isinstance(content, dict) else None
    if not isinstance(name, str):
        raise ConfigError(f"--lm-eval {task}: is no task file, it has no `task:` with a name")
    return name, str(path.resolve().parent)


class _Lenient(yaml.SafeLoader):
    """Task files name Python functions with `!function`; here only the task's name is read."""


_Lenient.add_multi_constructor("!", lambda loader, suffix, node: None)
