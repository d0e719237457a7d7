"""Back-propagation with any update rule: the step shared by LoRA and full finetuning.

The gradient of the mean loss of the whole effective batch is accumulated over the micro-batches: each contributes
its *sum* divided by the weight (tokens or examples) of all of them, so k micro-batches equal one big batch even when
their sizes differ. Memory beyond weights: one gradient and the rule's state per trained parameter, and the
activations of one micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lowmem.data.batch import Batch
from lowmem.errors import ConfigError
from lowmem.kernels.reference import stream_key
from lowmem.methods.accumulate import accumulate, drop_gradients
from lowmem.methods.base import MethodState, StepReport
from lowmem.methods.layout import Layout, Whole
from lowmem.methods.rules.choice import RuleChoice
from lowmem.methods.tensors import SkipCounter, restore_
from lowmem.models.loss import LossFn


class FirstOrder:
    """`Method` that calls backward and hands each gradient to the rule that `rules` gives its parameter.

    `trainable`: parameters by canonical name. `exporter` writes the result in the format other tools read.
    `max_grad_norm` clips the global norm of the accumulated gradient, exactly. `layout`: what of them is here.
    """

    def __init__(
        self,
        trainable: dict[str, nn.Parameter],
        rules: RuleChoice,
        *,
        title: str,
        seed: int,
        max_grad_norm: float | None,
        exporter: Callable[[Path], None],
        layout: Layout | None = None,
    ) -> None:
        if not trainable:
            raise ConfigError("method: nothing to train: no parameter requires a gradient; check the target modules")
        self._parameters = trainable
        self._rules = {name: rules(name, p) for name, p in trainable.items()}
        self._layout = layout or Whole()
        self._slots = {name: self._rules[name].init(self._layout.part(p)) for name, p in trainable.items()}
        self._title = f"{title} + {rules.title}"
        self._seed = seed
        self._max_grad_norm = max_grad_norm
        self._exporter = exporter
        self._updates = 0
        self._skips = SkipCounter()

    @property
    def title(self) -> str:
        return self._title

    @property
    def trainable(self) -> dict[str, Tensor]:
        return dict(self._parameters)

    def step(self, loss_fn: LossFn, micro_batches: Sequence[Batch], *, lr: float, step: int) -> StepReport:
        try:
            loss = accumulate(loss_fn, micro_batches, seed=self._seed, step=step)
            norm = self._layout.norm(self._parameters.values())
            skipped = not (math.isfinite(loss) and math.isfinite(norm))
            if not skipped:
                self._update(lr, norm, step)
        finally:  # also when memory ran out: the step may be tried again
            drop_gradients(self._parameters.values())
        self._skips.record(skipped, step=step, why="the loss or the gradient is not finite")
        return StepReport(loss, {"grad_norm": norm}, skipped=skipped)

    def rehearse(self, loss_fn: LossFn, micro_batches: Sequence[Batch]) -> None:
        try:
            accumulate(loss_fn, micro_batches, seed=self._seed, step=0)
        finally:
            drop_gradients(self._parameters.values())

    def state(self) -> MethodState:
        tensors = {key: self._layout.whole(part, parameter) for key, (part, parameter) in self._tensors().items()}
        return MethodState(tensors, {"updates": self._updates, "skips": self._skips.in_a_row})

    def load_state(self, state: MethodState) -> None:
        known = self._tensors()
        saved = {k: self._layout.take(t, known[k][1]) if k in known else t for k, t in state.tensors.items()}
        restore_({key: part for key, (part, _) in known.items()}, saved)
        self._updates = int(state.numbers["updates"] or 0)
        self._skips.in_a_row = int(state.numbers["skips"] or 0)

    def export(self, folder: Path) -> None:
        self._exporter(folder)

    def _update(self, lr: float, norm: float, step: int) -> None:
        self._updates += 1
        clip = 1.0 if self._max_grad_norm is None else min(1.0, self._max_grad_norm / (norm + 1e-6))
        layout = self._layout
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                if parameter.grad is None:
                    continue
                grad = layout.part(parameter.grad)
                if clip < 1.0:
                    grad.mul_(clip)
                key = stream_key(self._seed, step, layout.stream(parameter), name, "rounding")
                self._rules[name].update_(
                    layout.part(parameter), grad, self._slots[name], lr=lr, t=self._updates, rounding_key=key
                )

    def _tensors(self) -> dict[str, tuple[Tensor, nn.Parameter]]:
        """What is here of every tensor of the state, and the parameter that it belongs to."""
        found = {f"weights/{name}": (self._layout.part(p.detach()), p) for name, p in self._parameters.items()}
        for name, slots in self._slots.items():
            found |= {f"state/{name}/{slot}": (tensor, self._parameters[name]) for slot, tensor in slots.items()}
        return found
