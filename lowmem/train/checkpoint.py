"""Checkpoints that are whole or absent: written aside, synced, renamed; every file has a digest.

A checkpoint is a folder `step-00000100/` with `tensors.safetensors`, `state.json` and `manifest.json`, which holds the
size and SHA-256 of the other two. What cannot be verified is refused by name, and the newest good one is offered.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lowmem.errors import CheckpointError
from lowmem.methods.base import MethodState

FORMAT = 1
_FILES = ("tensors.safetensors", "state.json")


@dataclass(frozen=True)
class Checkpoint:
    """`step` updates are done. `loop` is the loop's own numbers (best metric, patience, tokens). `base`: the earlier
    checkpoint whose state must be loaded before this one's (`lowmem.train.delta`)."""

    step: int
    method: MethodState
    loop: dict[str, Any]
    base: Checkpoint | None = None


class CheckpointStore:
    """The `checkpoints/` folder of a run. Keeps the newest `keep` checkpoints and the one marked best."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder = folder
        self._keep = keep

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        found = (p.name.removeprefix("step-") for p in self.folder.glob("step-*") if p.is_dir())
        return sorted(int(name) for name in found if name.isdigit())

    def save(self, checkpoint: Checkpoint, *, best: int | None) -> Path:
        """The checkpoint is on disk, synced; old ones beyond `keep` are gone, never the one of step `best`.

        Later ones go too: they remain when a run was resumed from an older checkpoint, and their metrics are gone.
        """
        from safetensors.torch import save_file

        target = self.path(checkpoint.step)
        partial = self.folder / f".partial-{target.name}"
        for abandoned in self.folder.glob(".partial-step-*"):
            shutil.rmtree(abandoned)
        partial.mkdir(parents=True)
        tensors = {name: tensor.contiguous() for name, tensor in checkpoint.method.tensors.items()}
        save_file(_without_shared_memory(tensors), partial / _FILES[0])
        state = {
            "format": FORMAT,
            "step": checkpoint.step,
            "method": checkpoint.method.numbers,
            "loop": checkpoint.loop,
        }
        (partial / _FILES[1]).write_text(json.dumps(state, indent=1))
        manifest = {name: _digest(partial / name) for name in _FILES}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))
        for path in (*partial.iterdir(), partial):
            _sync(path)
        if target.exists() and _is_intact(target, manifest):
            # A step walked again writes the same bytes. Keeping them leaves no moment without this checkpoint.
            shutil.rmtree(partial)
        else:
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            _sync(self.folder)
        self._prune(checkpoint.step, best)
        return target

    def latest(self) -> Path | None:
        steps = self.steps()
        return self.path(steps[-1]) if steps else None

    def load(self, path: Path) -> Checkpoint:
        """The verified checkpoint. Raises `CheckpointError` naming the damaged file and the one to use instead."""
        try:
            return read_checkpoint(path)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {self._alternative(path)}") from error

    def _alternative(self, damaged: Path) -> str:
        for step in reversed(self.steps()):
            candidate = self.path(step)
            if candidate.name == damaged.name:
                continue
            try:
                read_checkpoint(candidate)
            except CheckpointError:
                continue
            return f"the checkpoint of step {step} is intact: continue with --resume {candidate}"
        return "no intact checkpoint is left: start again with --overwrite"

    def _prune(self, current: int, best: int | None) -> None:
        steps = self.steps()
        past = [step for step in steps if step <= current]
        kept = {*past[-self._keep :], best}
        for step in steps:
            if step not in kept:
                shutil.rmtree(self.path(step))


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in folder `path`, every byte verified. Raises `CheckpointError` naming the file that is wrong."""
    from safetensors.torch import load_file

    _verify(path)
    state = read_state(path)
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {state.get('format')!r}; this version reads format {FORMAT}")
    tensors: dict[str, Tensor] = load_file(path / _FILES[0])
    return Checkpoint(state["step"], MethodState(tensors, state["method"]), state["loop"])


def read_state(path: Path) -> dict[str, Any]:
    """The numbers of the checkpoint in folder `path`, unverified. Raises `CheckpointError`."""
    return _read_json(path / "state.json")


def _verify(path: Path) -> dict[str, Any]:
    """The manifest of the checkpoint in `path`, whose files are as it says. Raises `CheckpointError` otherwise."""
    if not path.is_dir():
        raise CheckpointError(f"there is no checkpoint at {path}")
    manifest = _read_json(path / "manifest.json")
    for name in _FILES:
        expected = manifest.get(name)
        if not (path / name).is_file():
            raise CheckpointError(f"{path / name} is missing")
        actual = _digest(path / name)
        if actual != expected:
            size = expected.get("size") if isinstance(expected, dict) else None
            raise CheckpointError(
                f"{path / name} is damaged: {actual['size']} bytes with another digest than the {size} bytes written"
            )
    return manifest


def _is_intact(path: Path, manifest: dict[str, Any]) -> bool:
    """Whether `path` holds exactly the checkpoint that `manifest` describes."""
    try:
        return _verify(path) == manifest
    except CheckpointError:
        return False


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it holds no object")
    return content


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _without_shared_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses tensors that share storage; every tensor of a method owns its own, so a clash is a bug."""
    pointers = [t.data_ptr() for t in tensors.values() if t.numel()]
    assert len(pointers) == len(set(pointers)), "two saved tensors share memory"
    return tensors


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
