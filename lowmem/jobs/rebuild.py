"""The trained weights at any checkpoint of a run: loaded, or rebuilt from a snapshot and the replay log, exactly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lowmem.config.load import load_run
from lowmem.errors import CheckpointError
from lowmem.events import Sink
from lowmem.jobs.folder import CONFIG_FILE
from lowmem.jobs.train import checkpoint_store
from lowmem.methods.base import Method
from lowmem.methods.build import build_method
from lowmem.models.load import LoadedModel, load_model
from lowmem.models.source import ModelSource, pick_device
from lowmem.train.loop import restore


@dataclass(frozen=True)
class Rebuilt:
    """`method` holds the weights of `step`, over `loaded.model`."""

    loaded: LoadedModel
    method: Method
    step: int


def rebuild(folder: Path, *, sink: Sink, checkpoint: Path | None = None) -> Rebuilt:
    """The run in `folder` at `checkpoint`, the newest one where none is given. Nothing is written.

    Raises `CheckpointError` where there is none, or where it is damaged.
    """
    config = load_run(folder / CONFIG_FILE).config.model_copy(update={"fsdp": False})  # checkpoints hold whole tensors
    store = checkpoint_store(config, folder)
    path = checkpoint or store.latest()
    if path is None:
        raise CheckpointError(f"{folder} holds no checkpoint; it was stopped before the first one was written")
    found = store.load(path)
    loaded = load_model(ModelSource.from_config(config), device=pick_device(config.device), sink=sink)
    method = build_method(config, loaded.model)
    restore(method, found)
    return Rebuilt(loaded, method, found.step)


def export_checkpoint(folder: Path, target: Path, *, sink: Sink, checkpoint: Path | None = None) -> int:
    """`target` holds the model or adapter of a checkpoint, as other tools read it, and the tokenizer; returns its step.

    Raises `CheckpointError` when `target` is not empty.
    """
    if target.exists() and any(target.iterdir()):
        raise CheckpointError(f"{target} is not empty; export into a new folder")
    rebuilt = rebuild(folder, sink=sink, checkpoint=checkpoint)
    rebuilt.method.export(target)
    rebuilt.loaded.tokenizer.save_pretrained(str(target))
    return rebuilt.step
