"""Run folders as the training job leaves them, without training."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowmem.config.load import dump_run
from lowmem.config.run import RunConfig
from lowmem.events import CheckpointSaved, EvalDone, Event, Notice, RunFinished, RunStarted, StepDone, as_record
from lowmem.train.record import MetricsFile

STARTED = RunStarted("LoRA r=8 + AdamW", 4, 0, trainable_parameters=1_200_000, total_parameters=134_500_000)


def step(number: int, *, loss: float = 1.0, **details: float) -> StepDone:
    return StepDone(
        step=number,
        epoch=number / 4,
        loss=loss,
        lr=1e-4 / number,
        tokens=100 * number,
        seconds=0.5,
        tokens_per_second=200.0,
        memory_bytes=700 * 2**20,
        peak_bytes=(800 + number) * 2**20,
        details=details,
    )


def judged(number: int, split: str, **metrics: float) -> EvalDone:
    return EvalDone(number, split, metrics, 0.1)


def finished_run() -> list[Event]:
    return [
        Notice("lr is read as learning_rate"),
        STARTED,
        judged(0, "before:held-out", loss=2.0, exact_match=0.25),
        step(1, loss=2.0, grad_norm=1.5),
        step(2, loss=math.nan, grad_norm=1.5),
        judged(2, "during:held-out", loss=1.75, exact_match=0.5),
        CheckpointSaved(2, "step-00000002", "periodic"),
        step(3, loss=1.5, grad_norm=1.5),
        step(4, loss=1.0, grad_norm=1.5),
        judged(4, "after:held-out", loss=1.5, exact_match=0.75),
        CheckpointSaved(4, "step-00000004", "final"),
        RunFinished(4, "completed", 2.0, 900 * 2**20),
    ]


def records(events: Sequence[Event]) -> list[dict[str, Any]]:
    return [json.loads(json.dumps(as_record(event)).replace("NaN", '"nan"')) for event in events]


def config(**changes: Any) -> RunConfig:
    values = {"model": "tiny-reasoner", "dataset": [{"format": "auto", "path": "data/gsm8k/train.jsonl"}]}
    return RunConfig.model_validate(values | changes)


def write_run(folder: Path, events: Sequence[Event], *, run_config: RunConfig | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump_run(run_config or config()), encoding="utf-8")
    (folder / "env.json").write_text(json.dumps({"packages": {"torch": "2.13.0"}, "ram_bytes": 2**34, "cuda": None}))
    metrics = MetricsFile(folder / "metrics.jsonl")
    for event in events:
        metrics(event)
    metrics.close()
    return folder
