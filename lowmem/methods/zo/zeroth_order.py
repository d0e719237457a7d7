"""`Method` of zeroth-order training: evaluates the loss at perturbed weights and moves along the same directions.

Memory beyond inference: one scratch matrix. Checkpoints hold the weights and the replay log that rebuilds them; a
state without weights, the log alone, brings a model that stands at an earlier point of the same run to its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from lowmem.data.batch import Batch
from lowmem.errors import CheckpointError
from lowmem.kernels.noise import TILE
from lowmem.methods.base import MethodState, StepReport
from lowmem.methods.tensors import SkipCounter, prefixed, restore_, values
from lowmem.methods.zo.algorithm import Algorithm, Evaluation, Scales
from lowmem.methods.zo.perturb import Direction, Perturber
from lowmem.methods.zo.replay import ReplayLog
from lowmem.models.loss import LossFn, LossSums


def weight_scales(parameters: dict[str, nn.Parameter]) -> Scales:
    """RMS of all weights (fp64 sums) and the coarsest machine epsilon among their dtypes.

    Summed in pieces: a whole embedding in fp64 would be the largest tensor of the run.
    """
    pieces = [piece for p in parameters.values() for piece in _pieces(p.detach().reshape(-1))]
    squares = math.fsum(values(piece.double().square().sum().reshape(1))[0] for piece in pieces)
    count = sum(p.numel() for p in parameters.values())
    resolution = max(torch.finfo(p.dtype).eps for p in parameters.values())
    return Scales(rms=math.sqrt(squares / count), resolution=resolution)


def _pieces(flat: Tensor) -> Sequence[Tensor]:
    """`flat` in views of `TILE` elements; of a fake tensor one, which needs the memory that each of them does."""
    return [flat[:TILE]] if isinstance(flat, FakeTensor) else torch.split(flat, TILE)


class ZerothOrder:
    """`model` is read through `perturber`; `algorithm` decides; `exporter` writes the result."""

    def __init__(
        self,
        perturber: Perturber,
        algorithm: Algorithm,
        *,
        kind_title: str,
        exporter: Callable[[Path], None],
    ) -> None:
        self._perturber = perturber
        self._algorithm = algorithm
        self._title = kind_title
        self._exporter = exporter
        self._log = ReplayLog()
        self._skips = SkipCounter()
        self._checked = False

    @property
    def title(self) -> str:
        return f"zeroth order: {self._algorithm.title}{self._title}"

    @property
    def trainable(self) -> dict[str, Tensor]:
        return dict(self._perturber.parameters)

    @property
    def log(self) -> ReplayLog:
        return self._log

    @torch.no_grad()
    def step(self, loss_fn: LossFn, micro_batches: Sequence[Batch], *, lr: float, step: int) -> StepReport:
        if not self._checked:
            self._perturber.check(lambda: loss_fn(micro_batches[0]))
            self._checked = True

        def evaluate(direction: Direction | None, eps: float) -> Evaluation:
            with self._perturber.at(direction, eps):
                return _evaluate(loss_fn, micro_batches)

        before, move = self._algorithm.numbers(), None
        try:
            move = self._algorithm.step(evaluate, lr=lr, step=step)
        finally:
            self._perturber.release()
            if move is None:  # memory ran out: the step may be tried again from the same state
                self._algorithm.load_numbers(before)
        if move.terms:
            terms = list(move.terms)
            self._perturber.move_(terms, step=step, form=move.form)
            self._log.append(step, terms, move.form)
        self._skips.record(move.skipped, step=step, why="the probed losses are not finite, or do not change")
        return StepReport(move.loss, {**move.details, "forwards": float(move.forwards)}, skipped=move.skipped)

    def rehearse(self, loss_fn: LossFn, micro_batches: Sequence[Batch]) -> None:
        try:
            self._perturber.check(lambda: _evaluate(loss_fn, micro_batches))
        finally:
            self._perturber.release()
        self._checked = True

    def state(self) -> MethodState:
        weights = {name: p.detach() for name, p in self._perturber.parameters.items()}
        tensors = prefixed("weights", weights) | prefixed("replay", self._log.state())
        return MethodState(tensors, {**self._algorithm.numbers(), "skips": self._skips.in_a_row})

    def load_state(self, state: MethodState) -> None:
        saved = dict(state.tensors)
        try:
            steps, coefs = saved.pop("replay/steps"), saved.pop("replay/coefs")
        except KeyError as error:
            raise CheckpointError(
                f"the checkpoint lacks the tensor {error.args[0]!r}; it is not of a zo run"
            ) from error
        weights = prefixed("weights", {n: p.detach() for n, p in self._perturber.parameters.items()})
        if saved.keys() & weights.keys():
            restore_(weights, saved)
            self._log.load(steps, coefs)
        else:
            self._log.catch_up(self._perturber, steps, coefs)
        numbers = dict(state.numbers)
        self._skips.in_a_row = int(numbers.pop("skips") or 0)
        self._algorithm.load_numbers(numbers)

    def export(self, folder: Path) -> None:
        self._exporter(folder)


def _evaluate(loss_fn: LossFn, micro_batches: Sequence[Batch]) -> Evaluation:
    sums: list[float] = []
    counts: list[float] = []
    for batch in micro_batches:
        batch_sums, batch_counts = _numbers(loss_fn(batch))
        sums += batch_sums
        counts += batch_counts
    return Evaluation(tuple(sums), tuple(counts))


def _numbers(losses: LossSums) -> tuple[list[float], list[float]]:
    """The sums as numbers: a function of its own, so that no tensor outlives its micro-batch."""
    return values(losses.per_example), values(losses.counts)
