"""One run of one method on one task, at a given number of forward passes, and what came out of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from lowmem.config.method import ZoMethod
from lowmem.config.run import RunConfig
from lowmem.data.train_batches import TrainBatches
from lowmem.errors import NonFiniteError
from lowmem.evaluate.evaluate import evaluate_dataset
from lowmem.methods.base import Method
from lowmem.methods.build import build_method
from lowmem.models.load import pad_id
from lowmem.models.loss import ModelLoss
from lowmem.train.schedule import Schedule
from zero_order.tasks import Setting, Start, open_start, run_config

LOST = 1e6
"""Stands for the loss of a run that ended in non-finite numbers: JSON has no infinity."""
FORWARDS_OF_BACKWARD = 2
"""A first-order step counts as three forwards, or two where the base is frozen; three is assumed."""


def run(
    setting: Setting, method: dict[str, Any], *, rate: float | None, seed: int, forwards: int, work: Path
) -> dict[str, Any]:
    """Validation metrics before, halfway and after; `losses`: per judged example, before and after."""
    config = run_config(setting, method, rate, seed, work)
    start = open_start(config)
    trained = build_method(config, start.loaded.model)
    loss = ModelLoss(start.loaded.model, chunk_tokens=config.loss_chunk_tokens)
    before, losses_before = judge(start, loss), _losses(start, loss)
    try:
        halfway, used, steps = _train(config, start, trained, loss, forwards)
    except NonFiniteError:
        return {"before": before, "halfway": None, "after": {"loss": LOST}, "forwards": forwards, "steps": 0}
    after = judge(start, loss)
    if not math.isfinite(after["loss"]):
        after = {"loss": LOST}
    gain = [b - a for b, a in zip(losses_before, _losses(start, loss), strict=True)]
    return {
        "before": before,
        "halfway": halfway,
        "after": after,
        "gain_per_example": _mean_and_error(gain),
        "forwards": used,
        "steps": steps,
    }


def _train(
    config: RunConfig, start: Start, method: Method, loss: ModelLoss, forwards: int
) -> tuple[float | None, int, int]:
    """Steps until `forwards` passes are used; (validation loss halfway, passes, steps)."""
    batches = TrainBatches(
        [start.train],
        batch_size=config.per_device_train_batch_size,
        seed=config.seed,
        pad_id=pad_id(start.loaded.tokenizer),
    )
    first_order = not isinstance(config.method, ZoMethod)
    total = forwards // (1 + FORWARDS_OF_BACKWARD) if first_order else 1
    schedule = Schedule(config.schedule, config.peak_learning_rate, total, 0)
    used, step, halfway = 0, 0, None
    while used < forwards - (FORWARDS_OF_BACKWARD if first_order else 0):
        lr = schedule.rate(step) if first_order else config.peak_learning_rate
        report = method.step(loss, batches.micro_batches(step), lr=lr, step=step)
        used += 1 + FORWARDS_OF_BACKWARD if first_order else int(report.details["forwards"])
        step += 1
        if halfway is None and used >= forwards / 2:
            halfway = judge(start, loss)["loss"]
            halfway = halfway if math.isfinite(halfway) else LOST
    return halfway, used, step


def judge(start: Start, loss: ModelLoss) -> dict[str, float]:
    training = start.loaded.model.training
    start.loaded.model.eval()
    metrics = evaluate_dataset(
        loss,
        start.judge,
        batch_size=32,
        limit=None,
        pad_id=pad_id(start.loaded.tokenizer),
        device=torch.device("cpu"),
        generate=None,
    )
    start.loaded.model.train(training)
    return metrics


def _losses(start: Start, loss: ModelLoss) -> list[float]:
    """The mean loss of every judged example, in order."""
    batches = TrainBatches([start.judge], batch_size=32, seed=0, pad_id=pad_id(start.loaded.tokenizer))
    training = start.loaded.model.training
    start.loaded.model.eval()
    found: list[float] = []
    with torch.no_grad():
        for step in range(len(start.judge) // 32):
            for batch in batches.micro_batches(step):
                sums = loss(batch)
                found += (sums.per_example / sums.counts).tolist()
    start.loaded.model.train(training)
    return found


def _mean_and_error(values: list[float]) -> list[float]:
    """Mean and its standard error."""
    mean = math.fsum(values) / len(values)
    variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return [mean, math.sqrt(variance / len(values))]
