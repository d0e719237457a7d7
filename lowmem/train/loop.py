"""The training loop: the page everyone reads.

The method owns its step (`lowmem.methods.base`), evaluation comes in as a function, data as a pure function of the
step. So the loop has no state but a few numbers, all in `Progress`, and a run killed at any moment and resumed from its
last checkpoint walks through the same weights as a run that never stopped.
"""

from __future__ import annotations

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from lowmem.data.batch import Batch
from lowmem.errors import CheckpointError, ConfigError, Interrupted, OutOfMemoryError
from lowmem.events import CheckpointSaved, EvalDone, Notice, RunFinished, Sink, StepDone
from lowmem.methods.base import Method, StepReport
from lowmem.models.loss import LossFn
from lowmem.train.checkpoint import Checkpoint, CheckpointStore
from lowmem.train.limits import MEMORY_ERRORS, MemoryLimit
from lowmem.train.meter import MemoryMeter
from lowmem.train.schedule import Schedule

Metrics = dict[str, float]
T = TypeVar("T")


class Batches(Protocol):
    """The data of a run, addressable by step."""

    def micro_batches(self, step: int) -> Sequence[Batch]:
        """The effective batch of `step`, in micro-batches, on the model's device."""
        ...

    def largest(self) -> Sequence[Batch]:
        """Micro-batches as large as any step's, for a rehearsal."""
        ...

    def epoch_of(self, step: int) -> float:
        """Passes over the data completed when `step` updates are done."""
        ...


@dataclass(frozen=True)
class LoopSettings:
    """When things happen, in steps; `None` = never in between."""

    schedule: Schedule
    logging_steps: int = 1
    eval_steps: int | None = None
    save_steps: int | None = None
    metric: str = "loss"
    maximize: bool = False
    patience: int | None = None
    restore_best: bool = False


@dataclass
class Progress:
    """Everything the loop itself must remember across a restart."""

    step: int = 0
    tokens: int = 0
    best_value: float | None = None
    best_step: int | None = None
    evaluations_without_gain: int = 0
    concessions: int = 0


@dataclass(frozen=True)
class LoopResult:
    """`after` holds the final metrics by dataset; `reason` is "completed" or "early_stopping"."""

    after: dict[str, Metrics]
    steps: int
    reason: str
    peak_bytes: int


def run_loop(
    method: Method,
    loss_fn: LossFn,
    batches: Batches,
    *,
    settings: LoopSettings,
    store: CheckpointStore,
    evaluate: Callable[[], dict[str, Metrics]],
    meter: MemoryMeter,
    limit: MemoryLimit,
    sink: Sink,
    progress: Progress,
    agree: Callable[[bool], bool] = bool,
) -> LoopResult:
    """Trains from `progress.step` to the end of the schedule, after a rehearsal on the longest batch.

    `evaluate` returns metrics by dataset, the first being the one that decides best checkpoint and early stopping.
    `agree` tells whether any process of the run was asked to stop, so that all stop after the same step.
    Raises `Interrupted` after SIGINT or SIGTERM, once a full checkpoint is on disk, and `OutOfMemoryError` when a step
    does not fit after everything that `limit` can concede.
    """
    for _ in range(progress.concessions):
        limit.concede()
    _rehearse(method, loss_fn, batches, limit, progress, sink)
    started, total = time.monotonic(), settings.schedule.total
    judged: tuple[int, dict[str, Metrics]] | None = None
    if progress.step == 0:
        judged = 0, _evaluate(evaluate, progress, settings, sink, split="before")
        if settings.restore_best:
            _save(method, store, progress, sink, reason="best")
    stopped = settings.patience and progress.evaluations_without_gain >= settings.patience
    reason, clock, tokens_logged = "early_stopping" if stopped else "completed", time.monotonic(), progress.tokens
    with _stop_signals() as stop:
        while progress.step < total and reason == "completed":
            # Step: one effective batch, one update.
            lr = settings.schedule.rate(progress.step)
            report, micro_batches = _step(method, loss_fn, batches, lr, limit, progress, sink)
            progress.step += 1
            progress.tokens += sum(batch.tokens for batch in micro_batches)
            last = progress.step == total

            # Log: every `logging_steps`, and the last step.
            if progress.step % settings.logging_steps == 0 or last:
                seconds = time.monotonic() - clock
                event = StepDone(
                    step=progress.step,
                    epoch=batches.epoch_of(progress.step),
                    loss=report.loss,
                    lr=lr,
                    tokens=progress.tokens,
                    seconds=seconds,
                    tokens_per_second=(progress.tokens - tokens_logged) / max(seconds, 1e-9),
                    memory_bytes=meter.now(),
                    peak_bytes=meter.peak(),
                    details=report.details | ({"skipped": 1.0} if report.skipped else {}),
                )
                sink(event)

            # Evaluate: every `eval_steps`, and after the last step.
            if last or (settings.eval_steps and progress.step % settings.eval_steps == 0):
                judged = (
                    progress.step,
                    _evaluate(evaluate, progress, settings, sink, split="after" if last else "during"),
                )
                if settings.restore_best and progress.best_step == progress.step and not last:
                    _save(method, store, progress, sink, reason="best")
                if settings.patience and progress.evaluations_without_gain >= settings.patience and not last:
                    reason = "early_stopping"

            # Save: every `save_steps`, and when asked to stop.
            stopping = agree(stop.signal is not None)
            periodic = bool(settings.save_steps) and progress.step % (settings.save_steps or 1) == 0
            if not last and (periodic or stopping):
                _save(method, store, progress, sink, reason="periodic" if periodic else "interrupted")
            if not last and stopping:
                sink(RunFinished(progress.step, "interrupted", time.monotonic() - started, meter.peak()))
                by = stop.signal or "another process"
                raise Interrupted(
                    f"stopped by {by} after step {progress.step} of {total}; a full checkpoint is in "
                    f"{store.path(progress.step)}; continue with --resume"
                )
            if progress.step % settings.logging_steps == 0:
                clock, tokens_logged = time.monotonic(), progress.tokens

    # Finish: keep the last weights, and go back to the best ones if asked.
    _save(method, store, progress, sink, reason="final")
    best = progress.best_step
    if settings.restore_best and best is not None and best != progress.step:
        method.load_state(store.load(store.path(best)).method)
        sink(Notice(f"the best weights are those of step {best}"))
        judged = None
    if judged is None or judged[0] != progress.step:
        judged = progress.step, _evaluate(evaluate, progress, settings, sink, split="after")
    sink(RunFinished(progress.step, reason, time.monotonic() - started, meter.peak()))
    return LoopResult(judged[1], progress.step, reason, meter.peak())


def _step(
    method: Method,
    loss_fn: LossFn,
    batches: Batches,
    lr: float,
    limit: MemoryLimit,
    progress: Progress,
    sink: Sink,
) -> tuple[StepReport, Sequence[Batch]]:
    """One update of the weights."""

    def attempt() -> tuple[StepReport, Sequence[Batch]]:
        micro_batches = batches.micro_batches(progress.step)
        return method.step(loss_fn, micro_batches, lr=lr, step=progress.step), micro_batches

    return _within(limit, attempt, f"step {progress.step + 1}", progress, sink)


def _rehearse(
    method: Method, loss_fn: LossFn, batches: Batches, limit: MemoryLimit, progress: Progress, sink: Sink
) -> None:
    """Memory for the largest step was there once: what is conceded here is conceded before anything was trained."""
    _within(limit, lambda: method.rehearse(loss_fn, batches.largest()), "the longest batch", progress, sink)


def _within(limit: MemoryLimit, attempt: Callable[[], T], what: str, progress: Progress, sink: Sink) -> T:
    """The result of `attempt`; when memory runs out, of the same attempt after the next concession."""
    while True:
        try:
            with limit.guard():
                return attempt()
        except MEMORY_ERRORS as error:
            reason = str(error)
        given = limit.concede()
        if given is None:
            raise OutOfMemoryError(
                f"{what}: {reason}; nothing lossless is left to give up. Lower max_length or "
                "loss_chunk_tokens, choose a lighter method (`lowmem plan` lists them), or raise memory_budget"
            )
        progress.concessions += 1
        sink(Notice(f"{what}: {reason}; going on with {given}"))


def restore(method: Method, checkpoint: Checkpoint) -> Progress:
    """Method and loop continue from `checkpoint`; what was restored is what the caller prints."""
    if checkpoint.base is not None:
        method.load_state(checkpoint.base.method)
    method.load_state(checkpoint.method)
    names = {field.name for field in dataclasses.fields(Progress)}
    if checkpoint.loop.keys() != names:
        raise CheckpointError(
            f"the checkpoint's loop state has the fields {sorted(checkpoint.loop)}, not {sorted(names)}"
        )
    return Progress(**checkpoint.loop)


def _evaluate(
    evaluate: Callable[[], dict[str, Metrics]],
    progress: Progress,
    settings: LoopSettings,
    sink: Sink,
    *,
    split: str,
) -> dict[str, Metrics]:
    """Metrics by dataset; the first dataset's metric updates the best value and the patience."""
    began = time.monotonic()
    results = evaluate()
    seconds = time.monotonic() - began
    for position, (name, metrics) in enumerate(results.items()):
        gained = position == 0 and _judge(metrics, progress, settings, name)
        sink(EvalDone(progress.step, f"{split}:{name}", metrics, seconds, is_best=gained))
    return results


def _judge(metrics: Metrics, progress: Progress, settings: LoopSettings, name: str) -> bool:
    """True when this is the best evaluation so far; `progress` remembers it."""
    value = metrics.get(settings.metric)
    if value is None:
        raise ConfigError(
            f"metric_for_best_model: {settings.metric!r} is not a metric of {name}: {', '.join(sorted(metrics))}"
        )
    best = progress.best_value
    better = best is None or (value > best if settings.maximize else value < best)
    if better and math.isfinite(value):
        progress.best_value, progress.best_step, progress.evaluations_without_gain = value, progress.step, 0
        return True
    progress.evaluations_without_gain += 1
    return False


def _save(method: Method, store: CheckpointStore, progress: Progress, sink: Sink, *, reason: str) -> None:
    checkpoint = Checkpoint(progress.step, method.state(), dataclasses.asdict(progress))
    folder = store.save(checkpoint, best=progress.best_step)
    sink(CheckpointSaved(progress.step, folder.name, reason))


@dataclass
class _Stop:
    signal: str | None = None


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """SIGINT and SIGTERM set `signal`; the same signal again takes its ordinary, immediate effect."""
    stop = _Stop()
    before: dict[signal.Signals, Any] = {}

    def request(number: int, _frame: object) -> None:
        stop.signal = signal.Signals(number).name
        signal.signal(number, before[signal.Signals(number)])

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.getsignal(number)
            signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
