"""The step of methods that update tensor by tensor, inside backward where that is possible.

    gather    each gradient goes to its `TensorUpdate` the moment backward has finished it, and is freed
    write     during the backward of the last micro-batch (per_layer, none), or when all is known (exact)

Memory: weights + state + the gradient of one layer + activations, instead of all gradients. Several micro-batches make
one step: what is gathered lives from one to the next, which is little for projected matrices and the whole gradient
for others; only the last micro-batch's backward frees it.

Clipping by `max_grad_norm`, over the gradient in the coordinates that are trained:
    exact       the global norm. Projected gradients are held until it is known. Whole gradients are not: a single
                micro-batch is run through backward twice, first for the norm, then for the update; several are held.
    per_layer   each tensor by its own norm, in one pass
    none        not at all
Several processes: what each gathered is summed before the update, so only `exact`, which waits, can be split.
A loss that is not finite is seen before its backward, and the step is skipped. A gradient that is not finite skips the
step with `exact`; otherwise it is too late for that, and the tensors concerned are left alone (`skipped_tensors`).
With `exact` on projected or several micro-batches a step that runs out of memory during backward can be repeated; a
step that has begun to write cannot, and every further step is refused (`Torn`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from lowmem.data.batch import Batch
from lowmem.errors import ConfigError
from lowmem.kernels.noise import stream_key
from lowmem.methods.base import MethodState, StepReport
from lowmem.methods.inside_backward import Torn, gradients_to, scaled_losses
from lowmem.methods.sharding import ShardedLoss
from lowmem.methods.tensor_update import TensorUpdate
from lowmem.methods.tensors import SkipCounter, prefixed, restore_, scalar
from lowmem.models.loss import LossFn

Clipping = Literal["exact", "per_layer", "none"]


class LayerWise:
    """`Method` over one `TensorUpdate` per trained parameter, by canonical name."""

    def __init__(
        self,
        trainable: dict[str, nn.Parameter],
        updates: Mapping[str, TensorUpdate],
        *,
        title: str,
        seed: int,
        clipping: Clipping,
        max_grad_norm: float | None,
        exporter: Callable[[Path], None],
    ) -> None:
        if not trainable:
            raise ConfigError("method: nothing to train: no parameter requires a gradient")
        self._parameters, self._tensors = trainable, dict(updates)
        self._title, self._seed, self._exporter = title, seed, exporter
        self._clipping = clipping
        self._limit = None if clipping == "none" else max_grad_norm
        self._updates = 0
        self._skips = SkipCounter()
        self._torn = Torn()
        self._norms: dict[str, Tensor] = {}
        self._left_alone = 0

    @property
    def title(self) -> str:
        return self._title

    @property
    def clipping(self) -> Clipping:
        return self._clipping

    @property
    def trainable(self) -> dict[str, Tensor]:
        return dict(self._parameters)

    def step(self, loss_fn: LossFn, micro_batches: Sequence[Batch], *, lr: float, step: int) -> StepReport:
        self._torn.refuse()
        self._norms, self._left_alone = {}, 0
        try:
            if isinstance(loss_fn, ShardedLoss) or self._holds(micro_batches):
                loss, norm, written = self._when_known(loss_fn, micro_batches, lr=lr, step=step)
            elif self._clipping == "exact" and self._limit is not None:
                loss, norm, written = self._in_two_passes(loss_fn, micro_batches, lr=lr, step=step)
            else:
                loss, norm, written = self._in_one_pass(loss_fn, micro_batches, lr=lr, step=step)
        finally:
            self._drop()
        if written:
            self._updates += 1
            self._advance()
        self._torn.mended()
        self._skips.record(not written, step=step, why="the loss or the gradient is not finite")
        details = {"grad_norm": norm} | ({"skipped_tensors": float(self._left_alone)} if self._left_alone else {})
        return StepReport(loss, details, skipped=not written)

    def rehearse(self, loss_fn: LossFn, micro_batches: Sequence[Batch]) -> None:
        self._torn.refuse()
        try:
            self._backward(loss_fn, micro_batches, step=0, finished=self._forget)
        finally:
            self._drop()

    def state(self) -> MethodState:
        self._torn.refuse()
        return MethodState(self._all_tensors(), {"updates": self._updates, "skips": self._skips.in_a_row})

    def load_state(self, state: MethodState) -> None:
        self._updates = int(state.numbers["updates"] or 0)
        self._advance()
        restore_(self._all_tensors(), state.tensors)
        self._skips.in_a_row = int(state.numbers["skips"] or 0)
        self._torn.mended()

    def export(self, folder: Path) -> None:
        self._exporter(folder)

    def _holds(self, micro_batches: Sequence[Batch]) -> bool:
        """Whether everything gathered waits for the norm: where it is small, or must be kept between micro-batches."""
        if self._clipping != "exact":
            return False
        return len(micro_batches) > 1 or any(tensor.compact for tensor in self._tensors.values())

    def _when_known(
        self, loss_fn: LossFn, micro_batches: Sequence[Batch], *, lr: float, step: int
    ) -> tuple[float, float, bool]:
        loss = self._backward(loss_fn, micro_batches, step=step, finished=None)
        if isinstance(loss_fn, ShardedLoss):
            loss = self._exchange(loss_fn, loss)
        norm = self._global_norm(self._measure) if math.isfinite(loss) else math.nan
        if not math.isfinite(norm):
            return loss, norm, False
        for name in self._tensors:
            self._write(name, self._clip(norm), lr=lr, step=step)
        return loss, norm, True

    def _exchange(self, shared: ShardedLoss, loss: float) -> float:
        """What was gathered is summed over the processes unless the step will be skipped; returns the sum of `loss`."""
        met = [float(tensor.gathered) for tensor in self._tensors.values()]
        *counts, total = shared.sum_numbers([*met, loss])
        if math.isfinite(total):
            for tensor, count in zip(self._tensors.values(), counts, strict=True):
                if count:
                    tensor.exchange(shared.sum_)
        return total

    def _in_two_passes(
        self, loss_fn: LossFn, micro_batches: Sequence[Batch], *, lr: float, step: int
    ) -> tuple[float, float, bool]:
        loss = self._backward(loss_fn, micro_batches, step=step, finished=self._measure_and_forget)
        norm = self._global_norm(lambda: None) if math.isfinite(loss) else math.nan
        if not math.isfinite(norm):
            return loss, norm, False
        factor = self._clip(norm)
        self._backward(
            loss_fn, micro_batches, step=step, finished=lambda name: self._write(name, factor, lr=lr, step=step)
        )
        return loss, norm, True

    def _in_one_pass(
        self, loss_fn: LossFn, micro_batches: Sequence[Batch], *, lr: float, step: int
    ) -> tuple[float, float, bool]:
        norms: list[float] = []

        def finished(name: str) -> None:
            norm = scalar(self._tensors[name].norm())
            if math.isfinite(norm):
                norms.append(norm)
                self._write(name, self._clip(norm), lr=lr, step=step)
            else:
                self._left_alone += 1
                self._tensors[name].drop()

        loss = self._backward(loss_fn, micro_batches, step=step, finished=finished)
        if math.isfinite(loss):
            for name, tensor in self._tensors.items():
                if tensor.gathered:  # used by an earlier micro-batch only
                    finished(name)
        return loss, math.sqrt(math.fsum(norm * norm for norm in norms)), bool(norms)

    def _backward(
        self,
        loss_fn: LossFn,
        micro_batches: Sequence[Batch],
        *,
        step: int,
        finished: Callable[[str], None] | None,
    ) -> float:
        """The mean loss; all gradients are gathered, and `finished` called during the last micro-batch's backward.

        Stops before the backward of the first micro-batch whose loss is not finite, and returns that.
        """
        loss, final = 0.0, False

        def receive(name: str, grad: Tensor) -> None:
            self._tensors[name].gather(grad)
            del grad
            if finished is not None and final:
                finished(name)

        with gradients_to(self._parameters, receive):
            for index, total in enumerate(scaled_losses(loss_fn, micro_batches, seed=self._seed, step=step)):
                loss += scalar(total)
                if not math.isfinite(loss):
                    break
                final = index == len(micro_batches) - 1
                total.backward()  # type: ignore[no-untyped-call]
        return loss

    def _write(self, name: str, factor: float, *, lr: float, step: int) -> None:
        self._torn.writes(step)
        key = stream_key(self._seed, step, 0, name, "rounding")
        with torch.no_grad():
            self._tensors[name].apply_(factor=factor, lr=lr, update=self._updates, key=key)

    def _clip(self, norm: float) -> float:
        return 1.0 if self._limit is None else min(1.0, self._limit / (norm + 1e-6))

    def _measure(self) -> None:
        self._norms = {name: tensor.norm() for name, tensor in self._tensors.items() if tensor.gathered}

    def _measure_and_forget(self, name: str) -> None:
        self._norms[name] = self._tensors[name].norm()
        self._tensors[name].drop()

    def _forget(self, name: str) -> None:
        self._tensors[name].drop()

    def _global_norm(self, measure: Callable[[], None]) -> float:
        measure()
        norms = [self._norms[name] for name in self._tensors if name in self._norms]
        if not norms:
            raise ConfigError("method: no trained parameter received a gradient; is the loss connected to them?")
        return scalar(torch.stack(norms).norm())

    def _drop(self) -> None:
        for tensor in self._tensors.values():
            tensor.drop()

    def _advance(self) -> None:
        """The state that the next update needs; freed first, so that it never exists beside what it replaces."""
        for tensor in self._tensors.values():
            tensor.close(self._updates)
        for tensor in self._tensors.values():
            tensor.open(self._updates)

    def _all_tensors(self) -> dict[str, Tensor]:
        tensors = prefixed("weights", {name: p.detach() for name, p in self._parameters.items()})
        for name, tensor in self._tensors.items():
            tensors |= prefixed(f"state/{name}", tensor.state())
        return tensors
