"""The run folder: when it may be used, what must fit on its disk, and which config it belongs to."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lowmem.config.load import dump_run, load_run
from lowmem.config.run import RunConfig
from lowmem.errors import CheckpointError, ConfigError
from lowmem.events import StepDone
from lowmem.train.record import read_metrics
from lowmem.units import format_bytes

CONFIG_FILE = "config.yaml"

FREE_TO_CHANGE = frozenset(
    {
        "device",
        "eval_generate",
        "forgetting",
        "generation",
        "logging_steps",
        "memory_budget",
        "num_threads",
        "output_dir",
        "per_device_eval_batch_size",
        "report_to",
        "run_name",
        "save_steps",
        "save_total_limit",
    }
)
"""Keys that may differ when a run is resumed: they do not enter the weights."""


def open_run_folder(config: RunConfig, *, resume: bool, overwrite: bool) -> Path:
    """The folder of the run, holding its resolved config. A non-empty folder is only used on request, and only a
    run's own folder is ever emptied. Raises `ConfigError`, or `CheckpointError` when another run would be resumed."""
    folder = Path(config.output_dir)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output_dir: {folder} is a file; choose another folder")
    used = folder.is_dir() and any(folder.iterdir())
    is_run = (folder / CONFIG_FILE).is_file()
    if resume:
        if not is_run:
            raise ConfigError(f"--resume: {folder} holds no run (no {CONFIG_FILE}); start it without --resume")
        _check_same_run(folder, config)
    elif used and not overwrite and not (is_run and _never_stepped(folder)):
        raise ConfigError(
            f"output_dir: {folder} is not empty; continue that run with --resume, replace it with --overwrite, "
            "or choose another output_dir"
        )
    elif used and not is_run:
        raise ConfigError(
            f"--overwrite: {folder} is not a run folder (no {CONFIG_FILE}), so nothing in it is deleted; "
            "choose another output_dir or empty it yourself"
        )
    elif used:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / CONFIG_FILE, dump_run(config))
    return folder


def check_disk(folder: Path, *, checkpoint_bytes: int, keep: int, export_bytes: int) -> None:
    """Raises `ConfigError` unless the checkpoints to come fit: `keep`, the best one, one being written, the export."""
    needed = checkpoint_bytes * (keep + 2) + export_bytes
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"output_dir: {keep} + 2 checkpoints of {format_bytes(checkpoint_bytes)} and the result need "
            f"{format_bytes(needed)}, the disk has {format_bytes(free)} free; lower save_total_limit or change the disk"
        )


def write_atomically(path: Path, text: str) -> None:
    """`path` holds `text`, or what it held before; never a part."""
    partial = path.with_name(f".partial-{path.name}")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _never_stepped(folder: Path) -> bool:
    """Whether the run in `folder` failed before its first step, so that nothing would be lost with it."""
    if any((folder / name).exists() for name in ("checkpoints", "model")):
        return False
    return all(record["event"] != StepDone.__name__ for record in read_metrics(folder / "metrics.jsonl"))


def _check_same_run(folder: Path, config: RunConfig) -> None:
    before = load_run(folder / CONFIG_FILE).config
    changed = [
        name
        for name in type(config).model_fields
        if name not in FREE_TO_CHANGE and getattr(before, name) != getattr(config, name)
    ]
    if changed:
        was = ", ".join(f"{name}: {getattr(before, name)!r} -> {getattr(config, name)!r}" for name in changed[:3])
        raise CheckpointError(
            f"--resume: this config is not the one of {folder} ({was}); resuming would train something else. "
            f"Use `lowmem train {folder / CONFIG_FILE} --resume`, or another output_dir"
        )
