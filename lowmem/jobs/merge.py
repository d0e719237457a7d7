"""`lowmem merge`: an adapter folded into the 16- or 32-bit base, and the proof that what was learned is still there.

An adapter that was trained on a quantized base meets other weights in the full base, so its effect must be measured and
not assumed: the loss on the run's own samples, and the divergence of the next-token distributions.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowmem.config.quantization import NoQuantization
from lowmem.config.run import RunConfig
from lowmem.data.batch import Batch
from lowmem.data.collate import grouped_batches
from lowmem.data.dataset import EncodedDataset, open_dataset
from lowmem.errors import ConfigError, QualityGateError
from lowmem.events import Notice, Sink
from lowmem.jobs.target import DtypeName, open_target
from lowmem.models.load import LoadedModel, load_model, pad_id
from lowmem.models.resolve import RunFolder, resolve
from lowmem.models.source import ModelSource, pick_device

SAMPLES = 16
TOLERANCE = 0.02
"""Share by which the loss may rise before the merged model is refused: a choice, not a measurement."""


@dataclass(frozen=True)
class MergeReport:
    """Losses per token on the same samples, and the mean KL divergence (nats) from the run to the merged model."""

    folder: Path
    samples: int
    loss_before: float
    loss_after: float
    divergence: float


def merge(
    run: str,
    target: Path,
    *,
    dtype: DtypeName | None = None,
    device: str = "auto",
    force: bool = False,
    sink: Sink,
) -> MergeReport:
    """`target` is a plain transformers folder of the run's model with its adapter folded in.

    `dtype`: of the merged weights, default the run's. Raises `ConfigError` when `run` is no run with an adapter or
    `target` is in use, and `QualityGateError`, leaving no folder, when the loss rises by more than `TOLERANCE` and
    `force` is not set.
    """
    location = resolve(run)
    if not isinstance(location, RunFolder) or not location.is_adapter:
        raise ConfigError(f"merge: {run} is no run folder with an adapter; there is nothing to merge")
    refuse_used(target)
    config = location.config
    trained = open_target(run, sink=sink, device=device).loaded
    batches = _samples(config, trained, sink)
    before = [_read(trained, batch) for batch in batches]
    del trained
    source = dataclasses.replace(ModelSource.from_config(config), model=run, quantization=NoQuantization())
    source = source if dtype is None else dataclasses.replace(source, dtype=dtype)
    merged = load_model(source, device=pick_device(device), adapter="merge", sink=sink)
    report = _compare(target, before, [_read(merged, batch) for batch in batches])
    _judge(report, force=force, sink=sink)
    save_model(merged, target)
    return report


def save_model(loaded: LoadedModel, target: Path) -> None:
    """`target` is a transformers folder of the model and its tokenizer; it appears when it is whole."""
    fresh = target.with_name(f".partial-{target.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    loaded.model.save_pretrained(str(fresh))
    loaded.tokenizer.save_pretrained(str(fresh))
    if target.exists():
        target.rmdir()
    fresh.rename(target)


def refuse_used(target: Path) -> None:
    """Raises `ConfigError` when something is at `target` already (an empty folder is nothing)."""
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists():
        raise ConfigError(f"--output {target} exists already; nothing is overwritten, choose another name")


@dataclass(frozen=True)
class _Reading:
    """Log-probabilities (N, V) of the trained positions, and the labels there."""

    log_probabilities: Tensor
    labels: Tensor


def _samples(config: RunConfig, loaded: LoadedModel, sink: Sink) -> list[Batch]:
    """Some of the run's own samples: those it was evaluated on, else those it was trained on."""
    sections: Sequence[Any] = config.eval_dataset or config.dataset
    dataset: EncodedDataset = open_dataset(
        sections[0],
        tokenizer=loaded.tokenizer,
        max_length=config.max_length,
        sink=sink,
        model_type=loaded.model.config.model_type,
    )
    count = min(SAMPLES, len(dataset))
    examples = [dataset[index * len(dataset) // count] for index in range(count)]
    batches = grouped_batches(examples, size=4, pad_id=pad_id(loaded.tokenizer))
    return [batch.to(loaded.model.device) for batch in batches]


@torch.no_grad()
def _read(loaded: LoadedModel, batch: Batch) -> _Reading:
    positions: dict[str, Any] = {} if batch.position_ids is None else {"position_ids": batch.position_ids}
    out = loaded.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **positions)
    rows, columns = batch.positions
    logits = out.logits[rows, columns].float().cpu()
    return _Reading(logits.log_softmax(-1), batch.input_ids[rows, columns + 1].cpu())


def _compare(target: Path, before: list[_Reading], after: list[_Reading]) -> MergeReport:
    def loss(readings: list[_Reading]) -> float:
        picked = [r.log_probabilities.gather(1, r.labels[:, None]) for r in readings]
        return -float(torch.cat(picked).mean())

    pairs = zip(before, after, strict=True)
    kl = [(b.log_probabilities.exp() * (b.log_probabilities - a.log_probabilities)).sum(-1) for b, a in pairs]
    return MergeReport(target, SAMPLES, loss(before), loss(after), float(torch.cat(kl).mean()))


def _judge(report: MergeReport, *, force: bool, sink: Sink) -> None:
    limit = report.loss_before * (1 + TOLERANCE)
    if math.isfinite(report.loss_after) and report.loss_after <= limit:
        return
    said = (
        f"the merged model's loss on the run's samples is {report.loss_after:.4f}, the run's {report.loss_before:.4f}: "
        f"more than {TOLERANCE:.0%} was lost (KL {report.divergence:.4f})"
    )
    if not force:
        raise QualityGateError(f"{said}; keep the adapter on its quantized base, or merge anyway with --force")
    sink(Notice(said))
