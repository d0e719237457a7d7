"""The first step of a run, measured tensor by tensor: what stands beside the plan's prediction in the report.

Counting costs a dispatch per operation, so only the first step is counted; every later step allocates the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from lowmem.data.batch import Batch
from lowmem.methods.base import Method, MethodState, StepReport
from lowmem.models.loss import LossFn
from lowmem.models.modes import eval_mode
from lowmem.plan.tracker import OPTIMIZER, WORKING, LiveBytes, PhasedLoss

INFERENCE = "plain inference"


class MeasuredFirstStep:
    """A `Method` that is `method` in everything, and fills `peaks` (bytes by phase) during its first step.

    `peaks["plain inference"]` is the same batch's loss computed without training, for comparison.
    """

    def __init__(self, method: Method, model: nn.Module, *, vocabulary: int | None) -> None:
        self._method, self._model, self._vocabulary = method, model, vocabulary
        self.peaks: dict[str, int] = {}

    @property
    def title(self) -> str:
        return self._method.title

    @property
    def trainable(self) -> dict[str, torch.Tensor]:
        return self._method.trainable

    def step(self, loss_fn: LossFn, micro_batches: Sequence[Batch], *, lr: float, step: int) -> StepReport:
        if self.peaks:
            return self._method.step(loss_fn, micro_batches, lr=lr, step=step)
        inference = self._tracker(micro_batches)
        with eval_mode(self._model), torch.no_grad(), inference, inference.phase("forward"):
            for batch in micro_batches:
                loss_fn(batch)
        tracker = self._tracker(micro_batches)
        undo = tracker.watch_gradients(self._model.parameters())
        try:
            with tracker:
                report = self._method.step(PhasedLoss(loss_fn, tracker), micro_batches, lr=lr, step=step)
        finally:
            undo()
        measured = {phase: nbytes for phase, nbytes in tracker.peaks.items() if phase != "outside"}
        self.peaks = {INFERENCE: inference.peaks["forward"], **measured}
        return report

    def rehearse(self, loss_fn: LossFn, micro_batches: Sequence[Batch]) -> None:
        self._method.rehearse(loss_fn, micro_batches)

    def state(self) -> MethodState:
        return self._method.state()

    def load_state(self, state: MethodState) -> None:
        self._method.load_state(state)

    def export(self, folder: Path) -> None:
        self._method.export(folder)

    def _tracker(self, micro_batches: Sequence[Batch]) -> LiveBytes:
        """Weights, state and the batch itself are counted from the start."""
        tracker = LiveBytes(vocabulary=self._vocabulary)
        for name, tensor in self._method.state().tensors.items():
            if name.startswith("state/"):
                tracker.track(tensor, OPTIMIZER)
        tracker.track_module(self._model)
        for batch in micro_batches:
            for tensor in batch.tensors:
                tracker.track(tensor, WORKING)
        return tracker
