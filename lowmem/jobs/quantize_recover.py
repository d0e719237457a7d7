"""Training on top of quantized weights, by the training job itself: the result is a run folder on a packed base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowmem.config.quantize import Recovery
from lowmem.config.run import RunConfig
from lowmem.events import Sink
from lowmem.jobs.quantize_source import Asked
from lowmem.jobs.train import train


def recover(asked: Asked, packed: Path, folder: Path, sink: Sink) -> Path:
    """`folder` is a run of `recover.steps` steps on the model in `packed`; one that was killed is resumed."""
    config = recovery_run(asked, packed, folder)
    if (folder / "model").is_dir():
        return folder
    train(config, sink=sink, resume=(folder / "config.yaml").is_file())
    return folder


def recovery_run(asked: Asked, packed: Path, folder: Path) -> RunConfig:
    """The run: the calibration dataset, the model in `packed`, the run's own training keys where it was a run."""
    wanted = asked.config.recover
    keys: dict[str, Any] = {
        "model": str(packed.absolute()),
        "dtype": asked.source.dtype,
        "trust_remote_code": asked.source.trust_remote_code,
        "dataset": [section.model_dump() for section in asked.datasets],
        "max_length": asked.max_length,
        "method": _method(wanted),
        "learning_rate": wanted.learning_rate,
        "max_steps": wanted.steps,
        "per_device_train_batch_size": wanted.per_device_train_batch_size,
        "gradient_accumulation_steps": wanted.gradient_accumulation_steps,
        "save_steps": max(1, wanted.steps // 10),
        "seed": asked.config.seed,
        "device": asked.config.device,
        "num_threads": asked.config.num_threads,
        "output_dir": str(folder.absolute()),
    }
    return RunConfig.model_validate(keys)


def _method(wanted: Recovery) -> dict[str, Any]:
    match wanted.method:
        case "zo":
            return {"kind": "zo", "train_adapter": {"kind": "lora", "lora_r": wanted.lora_r}}
        case kind:
            return {"kind": kind, "lora_r": wanted.lora_r}
