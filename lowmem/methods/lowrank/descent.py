"""The step of rules that train the two factors of every adapter together (`pair_rule.PairRule`).

Like `FirstOrder`: the gradient of the mean loss of the effective batch, clipped by its global norm, then one update per
adapter. The norm is that of the weights' gradients, as far as the adapters see them: the norm of the factors' own
gradients grows with the factors, so clipping by it shortens steps as training goes on. (In a run clipped that way steps
shrank by a factor of six in twenty; traces say that clipping explains only a part of that.) Whatever else is trained
(peft can be asked for more) is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lowmem.data.batch import Batch
from lowmem.errors import ConfigError
from lowmem.methods.accumulate import accumulate, drop_gradients
from lowmem.methods.base import MethodState, StepReport
from lowmem.methods.lowrank.observe import Observed, Observer
from lowmem.methods.lowrank.pair import Pair
from lowmem.methods.lowrank.pair_rule import PairGradient, PairRule
from lowmem.methods.tensors import SkipCounter, prefixed, restore_, scalar
from lowmem.models.loss import LossFn


class PairDescent:
    """`Method` that hands both gradients of every adapter, and what `rule` asks to observe, to `rule`.

    `trainable`: the factors of all `pairs` by canonical name.
    """

    def __init__(
        self,
        trainable: dict[str, nn.Parameter],
        pairs: Sequence[Pair],
        rule: PairRule,
        *,
        title: str,
        seed: int,
        max_grad_norm: float | None,
        exporter: Callable[[Path], None],
    ) -> None:
        if {id(p) for p in trainable.values()} != {id(p) for pair in pairs for p in (pair.a, pair.b)}:
            raise ConfigError(
                f"method: {rule.title} trains the two factors of adapters and nothing else; "
                "use method: lora where other parameters are trained"
            )
        self._parameters, self._pairs, self._rule = trainable, tuple(pairs), rule
        self._slots = {pair.name: rule.init(pair) for pair in pairs}
        self._observer = Observer(pairs, rule.observes)
        self._title = f"{title} + {rule.title}"
        self._seed, self._max_grad_norm, self._exporter = seed, max_grad_norm, exporter
        self._updates, self._peak = 0, 0.0
        self._skips = SkipCounter()

    @property
    def title(self) -> str:
        return self._title

    @property
    def observes(self) -> str:
        """What the rule sees of the tokens besides their gradients."""
        return self._rule.observes

    @property
    def trainable(self) -> dict[str, Tensor]:
        return dict(self._parameters)

    def step(self, loss_fn: LossFn, micro_batches: Sequence[Batch], *, lr: float, step: int) -> StepReport:
        try:
            with self._observer.watching() as observed:
                loss = accumulate(loss_fn, micro_batches, seed=self._seed, step=step)
            norm = self._norm()
            skipped = not (math.isfinite(loss) and math.isfinite(norm))
            if not skipped:
                self._update(observed, lr=lr, norm=norm)
        finally:  # also when memory ran out: the step may be tried again
            drop_gradients(self._parameters.values())
        self._skips.record(skipped, step=step, why="the loss or the gradient is not finite")
        return StepReport(loss, {"grad_norm": norm}, skipped=skipped)

    def rehearse(self, loss_fn: LossFn, micro_batches: Sequence[Batch]) -> None:
        try:
            with self._observer.watching():
                accumulate(loss_fn, micro_batches, seed=self._seed, step=0)
        finally:
            drop_gradients(self._parameters.values())

    def state(self) -> MethodState:
        numbers: dict[str, float | int | None] = {
            "updates": self._updates,
            "skips": self._skips.in_a_row,
            "peak_lr": self._peak,
        }
        return MethodState(self._tensors(), numbers)

    def load_state(self, state: MethodState) -> None:
        restore_(self._tensors(), state.tensors)
        self._updates = int(state.numbers["updates"] or 0)
        self._skips.in_a_row = int(state.numbers["skips"] or 0)
        self._peak = float(state.numbers["peak_lr"] or 0)

    def export(self, folder: Path) -> None:
        self._exporter(folder)

    def _gradient(self, pair: Pair, observed: Observed, clip: float) -> PairGradient:
        a, b = pair.a.grad, pair.b.grad
        if a is None or b is None:
            raise ConfigError(f"method: the adapter of {pair.name} received no gradient; leave that layer out")
        return PairGradient(a, b, observed, clip)

    def _norm(self) -> float:
        """Of the gradients of all adapted weights, tangent to the matrices of rank r."""
        with torch.no_grad():
            squares = [self._gradient(pair, Observed(), 1.0).square(pair) for pair in self._pairs]
            return scalar(torch.stack(squares).sum().sqrt())

    def _update(self, observed: dict[str, Observed], *, lr: float, norm: float) -> None:
        self._updates, self._peak = self._updates + 1, max(self._peak, lr)
        clip = 1.0 if self._max_grad_norm is None else min(1.0, self._max_grad_norm / (norm + 1e-6))
        with torch.no_grad():
            for pair in self._pairs:
                gradient = self._gradient(pair, observed.pop(pair.name), clip)
                self._rule.update_(pair, gradient, self._slots[pair.name], lr=lr, peak=self._peak, t=self._updates)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = prefixed("weights", {name: p.detach() for name, p in self._parameters.items()})
        for name, slots in self._slots.items():
            tensors |= prefixed(f"state/{name}", slots)
        return tensors
