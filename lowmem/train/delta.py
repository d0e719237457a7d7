"""Checkpoints of zeroth-order runs that hold 16 bytes a probe instead of the weights.

The run is a function of its initial weights and its replay log (`lowmem.methods.zo.replay`), so a checkpoint without
weights is whole: whoever resumes loads the newest snapshot before it, or the model that the run started from, and
replays the rest. A full snapshot every `snapshot_steps` steps bounds how much that is. The best checkpoint is always a
snapshot, since a run that has gone on cannot replay backwards.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from lowmem.errors import CheckpointError
from lowmem.methods.base import MethodState
from lowmem.train.checkpoint import Checkpoint, CheckpointStore, read_state

WEIGHTS = "weights/"
LOG = "replay/steps"
BASE = "snapshot"
"""The number in a checkpoint's method state that names the step of its snapshot; 0 = the model before the run."""


class DeltaStore(CheckpointStore):
    """A `checkpoints/` folder in which most checkpoints hold the replay log alone."""

    def __init__(self, folder: Path, *, keep: int, snapshot_steps: int) -> None:
        super().__init__(folder, keep=keep)
        self._snapshot_steps = snapshot_steps

    def save(self, checkpoint: Checkpoint, *, best: int | None) -> Path:
        base = self._snapshot_before(checkpoint.step)
        if checkpoint.step == best or checkpoint.step - base >= self._snapshot_steps:
            return super().save(checkpoint, best=best)
        assert LOG in checkpoint.method.tensors, "only zeroth order can be rebuilt from a log"
        kept = {name: t for name, t in checkpoint.method.tensors.items() if not name.startswith(WEIGHTS)}
        method = MethodState(kept, {**checkpoint.method.numbers, BASE: base})
        return super().save(dataclasses.replace(checkpoint, method=method), best=best)

    def load(self, path: Path) -> Checkpoint:
        """The verified checkpoint, with the snapshot that it needs as its `base`."""
        checkpoint = super().load(path)
        step = checkpoint.method.numbers.get(BASE)
        if step is None:
            return checkpoint
        numbers = {name: value for name, value in checkpoint.method.numbers.items() if name != BASE}
        base = super().load(self.path(int(step))) if step else None
        return dataclasses.replace(checkpoint, method=MethodState(checkpoint.method.tensors, numbers), base=base)

    def _snapshot_before(self, step: int) -> int:
        """The newest earlier step whose checkpoint holds weights; 0 where there is none."""
        return max((at for at in self.steps() if at < step and self._base_of(at) == at), default=0)

    def _base_of(self, step: int) -> int | None:
        """The snapshot that the checkpoint of `step` builds on, itself if it is one; None where it is damaged."""
        try:
            numbers = read_state(self.path(step))["method"]
        except (CheckpointError, KeyError):
            return None  # whoever loads it is told; here it only means that nothing can build on it
        return int(numbers.get(BASE, step))

    def _prune(self, current: int, best: int | None) -> None:
        """As without deltas, but the snapshots that the kept ones build on stay too."""
        steps = self.steps()
        kept = {*[step for step in steps if step <= current][-self._keep :], best}
        kept |= {self._base_of(step) for step in kept if step in steps}
        for step in steps:
            if step not in kept:
                shutil.rmtree(self.path(step))
