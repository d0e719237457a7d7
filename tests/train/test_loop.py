from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lowmem.data.batch import Batch
from lowmem.errors import CheckpointError, ConfigError, Interrupted
from lowmem.events import TIMING_FIELDS, CheckpointSaved, EvalDone, Event, Notice, RunFinished, StepDone, as_record
from lowmem.methods.base import Method
from lowmem.methods.build import build_method
from lowmem.models.loss import ModelLoss
from lowmem.models.modes import eval_mode
from lowmem.train.checkpoint import CheckpointStore
from lowmem.train.limits import StepLimit
from lowmem.train.loop import LoopResult, LoopSettings, Progress, restore, run_loop
from lowmem.train.meter import MemoryMeter
from lowmem.train.schedule import Schedule
from tests.tiny import lm_batch, run_config, tiny_model

TOTAL = 10


class TinyBatches:
    """Two micro-batches a step, four steps an epoch."""

    def micro_batches(self, step: int) -> Sequence[Batch]:
        return [lm_batch(rows=2, seed=2 * (step % 4)), lm_batch(rows=3, seed=2 * (step % 4) + 1)]

    def largest(self) -> Sequence[Batch]:
        return [lm_batch(rows=3, seed=1)] * 2

    def epoch_of(self, step: int) -> float:
        return step / 4


class Run:
    """One tiny run whose every part is real; `values` replaces the evaluation."""

    def __init__(self, folder: Path, *, values: Sequence[float] = (), **settings: Any) -> None:
        self.config = run_config(method={"kind": "lora"}, learning_rate=1e-2)
        self.model = tiny_model()
        self.method: Method = build_method(self.config, self.model)
        self.loss = ModelLoss(self.model)
        self.store = CheckpointStore(folder, keep=2)
        self.settings = replace(LoopSettings(Schedule("linear", 1e-2, TOTAL)), **settings)
        self.values = iter(values)
        self.events: list[Event] = []
        self.hook: Callable[[Event], None] = lambda event: None

    def evaluate(self) -> dict[str, dict[str, float]]:
        fixed = next(self.values, None)
        if fixed is not None:
            return {"fixed": {"loss": fixed}}
        with torch.no_grad(), eval_mode(self.model):
            sums = self.loss(lm_batch(seed=99))
        return {"held-out": {"loss": float(sums.total / sums.counts.sum())}}

    def sink(self, event: Event) -> None:
        self.events.append(event)
        self.hook(event)

    def go(self, progress: Progress | None = None) -> LoopResult:
        return run_loop(
            self.method,
            self.loss,
            TinyBatches(),
            settings=self.settings,
            store=self.store,
            evaluate=self.evaluate,
            meter=MemoryMeter(torch.device("cpu")),
            limit=StepLimit(self.model, self.method, budget=None, device=torch.device("cpu"), concessions=[]),
            sink=self.sink,
            progress=progress or Progress(),
        )

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.method.trainable.items()}

    def records(self) -> list[dict[str, Any]]:
        """Steps and evaluations without what depends on the clock."""
        kept = [event for event in self.events if isinstance(event, StepDone | EvalDone)]
        return [{k: v for k, v in as_record(event).items() if k not in TIMING_FIELDS} for event in kept]

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_run_evaluates_logs_and_saves_when_it_says(tmp_path: Path) -> None:
    run = Run(tmp_path, eval_steps=4, save_steps=3, logging_steps=2)
    result = run.go()
    assert [(e.step, e.split) for e in run.of(EvalDone)] == [
        (0, "before:held-out"),
        (4, "during:held-out"),
        (8, "during:held-out"),
        (10, "after:held-out"),
    ]
    assert [e.step for e in run.of(StepDone)] == [2, 4, 6, 8, 10]
    assert [e.lr for e in run.of(StepDone)] == pytest.approx([0.009, 0.007, 0.005, 0.003, 0.001])
    assert [(e.step, e.reason) for e in run.of(CheckpointSaved)] == [
        (3, "periodic"),
        (6, "periodic"),
        (9, "periodic"),
        (10, "final"),
    ]
    assert result.reason == "completed"
    assert result.after["held-out"]["loss"] < run.of(EvalDone)[0].metrics["loss"]
    assert run.of(StepDone)[-1].epoch == 2.5
    assert run.of(StepDone)[-1].tokens == sum(b.tokens for s in range(TOTAL) for b in TinyBatches().micro_batches(s))


@pytest.mark.parametrize("killed_after", [1, 3, 4, 7, 9])
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, killed_after: int) -> None:
    straight = Run(tmp_path / "straight", eval_steps=2, save_steps=2)
    straight.go()

    class Killed(BaseException):
        """Stands for SIGKILL: nothing in the process may act on it."""

    def kill(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == killed_after:
            raise Killed

    first = Run(tmp_path / "run", eval_steps=2, save_steps=2)
    first.hook = kill
    with pytest.raises(Killed):
        first.go()
    second = Run(tmp_path / "run", eval_steps=2, save_steps=2)
    latest = second.store.latest()
    progress = restore(second.method, second.store.load(latest)) if latest else Progress()
    resumed_at = progress.step
    assert resumed_at == (killed_after - 1) // 2 * 2
    second.go(progress)
    assert same(second.weights(), straight.weights())
    kept = [record for record in first.records() if resumed_at and record["step"] <= resumed_at]
    assert kept + second.records() == straight.records()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_full_checkpoint_and_resume_is_exact(tmp_path: Path, number: signal.Signals) -> None:
    straight = Run(tmp_path / "straight")
    straight.go()
    run = Run(tmp_path / "run")
    before = signal.getsignal(number)
    run.hook = lambda e: os.kill(os.getpid(), number) if isinstance(e, StepDone) and e.step == 5 else None
    with pytest.raises(Interrupted, match=f"stopped by {number.name} after step 5 of 10"):
        run.go()
    assert signal.getsignal(number) is before
    assert run.of(RunFinished)[-1].reason == "interrupted"
    again = Run(tmp_path / "run")
    latest = again.store.latest()
    assert latest is not None
    again.go(restore(again.method, again.store.load(latest)))
    assert same(again.weights(), straight.weights())


def test_early_stopping_counts_evaluations_without_gain(tmp_path: Path) -> None:
    run = Run(tmp_path, values=[5.0, 4.0, 4.5, 4.2, 3.0], eval_steps=1, patience=2)
    result = run.go()
    assert (result.reason, result.steps) == ("early_stopping", 3)
    assert [e.is_best for e in run.of(EvalDone)] == [True, True, False, False]


def test_the_best_weights_come_back_at_the_end(tmp_path: Path) -> None:
    run = Run(
        tmp_path, values=[5.0, 4.0, 4.5, 4.2, 4.3, 4.4, 4.5, 4.6, 4.7, 4.8, 4.9, 4.0], eval_steps=1, restore_best=True
    )
    at_best: dict[str, torch.Tensor] = {}

    def watch(event: Event) -> None:
        if isinstance(event, EvalDone) and event.is_best:
            at_best.update(run.weights())

    run.hook = watch
    run.go()
    assert same(run.weights(), at_best)
    assert [n.message for n in run.of(Notice)] == ["the best weights are those of step 1"]
    assert run.store.path(1).exists(), "the best checkpoint outlives save_total_limit"


def test_weights_from_before_training_win_when_training_hurts(tmp_path: Path) -> None:
    run = Run(tmp_path, values=[1.0] + [2.0] * TOTAL + [1.0], eval_steps=1, restore_best=True)
    start = run.weights()
    run.go()
    assert same(run.weights(), start)


def test_a_larger_metric_can_be_the_better_one(tmp_path: Path) -> None:
    run = Run(tmp_path, values=[0.1, 0.3, 0.2], eval_steps=5, maximize=True)
    run.go()
    assert [e.is_best for e in run.of(EvalDone)] == [True, True, False]


def test_nan_is_never_the_best(tmp_path: Path) -> None:
    run = Run(tmp_path, values=[float("nan"), 2.0, 3.0], eval_steps=5)
    run.go()
    assert [e.is_best for e in run.of(EvalDone)] == [False, True, False]


def test_an_unknown_metric_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'f1' is not a metric of held-out: loss"):
        Run(tmp_path, metric="f1").go()


def test_a_checkpoint_with_other_loop_fields_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.go()
    latest = run.store.latest()
    assert latest is not None
    checkpoint = run.store.load(latest)
    with pytest.raises(CheckpointError, match="loop state has the fields"):
        restore(run.method, replace(checkpoint, loop={"step": 1}))


def test_the_schedule_acts_on_the_weights(tmp_path: Path) -> None:
    """Not on a scheduler's idea of the rate: a schedule of zero leaves every weight where it was."""
    run = Run(tmp_path, schedule=Schedule("constant", 0.0, TOTAL))
    start = run.weights()
    run.go()
    assert same(run.weights(), start)
