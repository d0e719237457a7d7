"""Peak bytes of every phase of a run, found by running the real model and the real method on fake tensors.

No weights are read and no GPU is needed. The phases: `load`, `attach` (the method takes hold of the model), `forward`,
`backward`, `update`, `evaluate`, `save` and `generate`; within the first three, the parts are the model's layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lowmem.config.run import RunConfig
from lowmem.data.batch import Batch
from lowmem.methods.base import Method
from lowmem.models.loss import LossFn, LossSums, ModelLoss
from lowmem.models.modes import eval_mode
from lowmem.plan.fakes import BatchShape, fake_run
from lowmem.plan.generation import GenerationShape, answer, generate_once
from lowmem.plan.tracker import ADAPTER, OPTIMIZER, WEIGHTS, LiveBytes, Peak, PhasedLoss

if TYPE_CHECKING:
    from transformers import PretrainedConfig

STEPS = 1
"""All state is made when a method is attached, so that one step shows every phase (tested against two)."""


@dataclass(frozen=True)
class Work:
    """What a run does: `batch` is one micro-batch of a step; no evaluation where `eval_batch` is None."""

    batch: BatchShape
    eval_batch: BatchShape | None = None
    generation: GenerationShape | None = None
    """Answers that the evaluation generates."""
    scored: GenerationShape | None = None
    """Answers that every evaluation of the loss generates (`loss: {kind: score}`)."""
    micro_batches: int = 1


@dataclass(frozen=True)
class Simulation:
    """`places`: the peak of each (phase, part). Counts of parameters are those of the simulated depth."""

    places: dict[tuple[str, str], Peak]
    parameters: int
    trainable: int
    resident: int
    """Bytes that stay between steps: weights, adapter, optimizer state."""


def simulate(config: RunConfig, shape: PretrainedConfig, work: Work, *, granularity: int = 1) -> Simulation:
    """One fake run of `config` on a model of `shape`: attach, a step, an evaluation, a checkpoint."""
    tracker = LiveBytes(vocabulary=shape.get_text_config().vocab_size, granularity=granularity)
    run = fake_run(config, shape, tracker)
    with run.mode, tracker:
        batch = work.batch.batch()
        loss = ModelLoss(run.model, chunk_tokens=config.loss_chunk_tokens)
        watched = None if work.eval_batch is None else work.eval_batch.batch()
        resident = measure_run(
            run.method,
            run.model,
            PlannedLoss(loss if work.scored is None else ScoredShape(run.model, work.scored, tracker)),
            [batch] * work.micro_batches,
            tracker=tracker,
            evaluate=None if watched is None else lambda: evaluate_batch(loss, watched),
        )
        if work.generation is not None:
            with eval_mode(run.model):
                generate_once(run.model, work.generation, tracker)
    return Simulation(tracker.places, run.parameters, run.trainable, resident)


def measure_run(
    method: Method,
    model: Any,
    loss_fn: LossFn,
    micro_batches: Sequence[Batch],
    *,
    tracker: LiveBytes,
    evaluate: Callable[[], object] | None = None,
    steps: int = STEPS,
    lr: float = 1e-6,
) -> int:
    """Runs steps, an evaluation and a save under an active `tracker`; returns the bytes that stay between steps.

    The same function measures a real run and a fake one, so the two differ by their tensors alone.
    """
    label_state(tracker, model, method)
    parameters = [p for p in method.trainable.values() if isinstance(p, nn.Parameter)]
    remove = tracker.watch_gradients(parameters)
    try:
        with layer_parts(model, tracker):
            phased = PhasedLoss(loss_fn, tracker)
            for step in range(steps):
                method.step(phased, micro_batches, lr=lr, step=step)
            tracker.mark("between")
            resident = tracker.current
            if evaluate is not None:
                with tracker.phase("evaluate"), eval_mode(model), torch.no_grad():
                    evaluate()
        with tracker.phase("save"):
            saved = [tensor.contiguous() for tensor in method.state().tensors.values()]
            del saved
    finally:
        remove()
    return resident


def evaluate_batch(loss: ModelLoss, batch: Batch) -> object:
    """What an evaluation computes from one batch."""
    return loss(batch) if batch.options is None else loss.option_scores(batch)


def label_state(tracker: LiveBytes, model: nn.Module, method: Method) -> None:
    """What exists before the first step is counted, each storage under its component."""
    tracker.track_module(model)
    trained = {t.untyped_storage()._cdata for t in method.trainable.values()}
    for tensor in method.state().tensors.values():
        if tensor.untyped_storage()._cdata not in trained:
            tracker.track(tensor, OPTIMIZER)
    for name, tensor in method.trainable.items():
        tracker.track(tensor, ADAPTER if ".lora_" in name else WEIGHTS)


@contextmanager
def layer_parts(model: Any, tracker: LiveBytes) -> Iterator[None]:
    """Inside, `tracker` names the decoder layer that is computing, forwards and backwards.

    Layers are counted from the nearer end ("first+1", "last-0"), so that parts of a short and a long model can be
    compared. Hooks on modules and on hidden states only: nothing that the step computes changes.
    """
    handles: list[Any] = []
    layers = decoder_layers(model)
    for index, layer in enumerate(layers):
        label = part_label(index, len(layers))
        handles.append(layer.register_forward_pre_hook(_enter(tracker, label)))
        handles.append(layer.register_forward_hook(_leave(tracker, label, last=index == len(layers) - 1)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def part_label(index: int, layers: int) -> str:
    """`first+i` in the first half, `last-i` in the second."""
    return f"first+{index}" if index < layers // 2 else f"last-{layers - 1 - index}"


def decoder_layers(model: Any) -> list[nn.Module]:
    """The repeated layers of the decoder, in order; empty where the model has no list of that length."""
    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    return []


def _enter(tracker: LiveBytes, label: str) -> Any:
    def hook(module: nn.Module, args: Any) -> None:
        tracker.mark_part(label)

    return hook


def _leave(tracker: LiveBytes, label: str, *, last: bool) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if torch.is_tensor(hidden) and hidden.requires_grad:
            watched: Any = hidden  # its hooks are untyped in torch
            watched.register_hook(lambda grad: tracker.mark_part(label))
        if last:
            tracker.mark_part("head")

    return hook


class ScoredShape:
    """A loss that answers prompts of a shape, as scores do, and gives every row the same fake number."""

    def __init__(self, model: Any, shape: GenerationShape, tracker: LiveBytes) -> None:
        self._model, self._shape, self._tracker = model, shape, tracker

    def __call__(self, batch: Batch) -> LossSums:
        answer(self._model, self._shape, self._tracker)
        scores = torch.zeros(batch.examples, dtype=torch.float64)
        return LossSums(scores, torch.ones_like(scores))


class PlannedLoss:
    """The loss of a fake run. Its results differ from call to call, as real ones do, and its repetitions are cut short.

    Zeroth-order methods leave the weights alone when no probe changes the loss; a plan must see them move. Calls
    without gradients beyond `REPEATS` on the same batch need the memory that the earlier ones needed.
    """

    REPEATS = 3

    def __init__(self, loss_fn: LossFn) -> None:
        self._loss_fn = loss_fn
        self._calls = 0
        self._known: dict[int, list[LossSums]] = {}

    def __call__(self, batch: Batch) -> LossSums:
        self._calls += 1
        known = self._known.setdefault(id(batch), [])
        if torch.is_grad_enabled() or len(known) < self.REPEATS:
            sums = self._loss_fn(batch)
            if not torch.is_grad_enabled():
                known.append(sums)
        else:
            sums = known[-1]
        hinted: Any = sums.per_example
        hinted.planned_value = 1.0 + 1e-3 * (self._calls % 7)
        return sums
