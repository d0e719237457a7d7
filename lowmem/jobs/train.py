"""`lowmem train`: a config in, a trained model and its report out."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lowmem.config.dataset import Dataset
from lowmem.config.load import dump_run
from lowmem.config.loss import CrossEntropyLoss, ScoreLoss
from lowmem.config.method import ZoMethod
from lowmem.config.run import RunConfig
from lowmem.data.dataset import EncodedDataset, open_dataset
from lowmem.data.preview import preview
from lowmem.data.train_batches import TrainBatches
from lowmem.errors import CheckpointError, Interrupted
from lowmem.evaluate.evaluate import evaluate_dataset
from lowmem.events import EvalDone, Event, Notice, RunFinished, RunStarted, Sink
from lowmem.generate.generate import generate_batch
from lowmem.generate.tokens import Prompt
from lowmem.jobs.evaluate import name_apart
from lowmem.jobs.folder import check_disk, open_run_folder, write_atomically
from lowmem.jobs.memory import compare, predict_step, resolve, tensor_budget
from lowmem.jobs.score import Accuracy, ScoredAnswers
from lowmem.methods.build import build_method
from lowmem.models.checkpointing import set_gradient_checkpointing
from lowmem.models.load import LoadedModel, load_config, load_model, load_tokenizer, pad_id
from lowmem.models.loss import LossFn, ModelLoss
from lowmem.models.modes import eval_mode
from lowmem.models.source import ModelSource, pick_device
from lowmem.report.html import write_report
from lowmem.train.checkpoint import CheckpointStore
from lowmem.train.delta import DeltaStore
from lowmem.train.distributed import DataParallel, Follower, Group
from lowmem.train.environment import environment
from lowmem.train.limits import Halvings, StepLimit
from lowmem.train.loop import LoopResult, LoopSettings, Metrics, Progress, restore, run_loop
from lowmem.train.measured import MeasuredFirstStep
from lowmem.train.meter import MemoryMeter
from lowmem.train.record import MetricsFile, read_metrics, track, trackers
from lowmem.train.schedule import Schedule, warmup_steps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


HALF_PRECISION_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""CPU features with which bf16 matrix products are fast; without them torch emulates (measured: 7 times slower)."""


@dataclass(frozen=True)
class TrainReport:
    """What a run ends with. `before` and `after`: metrics by dataset name."""

    output_dir: Path
    before: dict[str, Metrics]
    after: dict[str, Metrics]
    steps: int
    seconds: float
    peak_bytes: int
    reason: str


@dataclass(frozen=True)
class DryRun:
    """The resolved config and the first sample with its trained tokens marked; nothing was trained."""

    config_yaml: str
    preview: str
    batches: dict[str, float]


def train(config: RunConfig, *, sink: Sink, resume: bool | Path = False, overwrite: bool = False) -> TrainReport:
    """Trains, evaluates before and after, and leaves a run folder that every other verb can use.

    `resume`: continue from the newest checkpoint, or from the given one. Raises `ConfigError` before anything is
    loaded when the run cannot be as written, and `Interrupted` after a signal, with a full checkpoint on disk.
    """
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    group = Group.join(pick_device(config.device))
    try:
        if group.leads:
            return _lead(config, group, sink=sink, resume=resume, overwrite=overwrite)
        return _follow(config, group, resume=resume)
    finally:
        group.leave()


def _lead(config: RunConfig, group: Group, *, sink: Sink, resume: bool | Path, overwrite: bool) -> TrainReport:
    """The only process, or the first of several: it writes the run folder."""
    config, plan = resolve(config, sink)
    folder = open_run_folder(config, resume=bool(resume), overwrite=overwrite)
    group.barrier()
    if plan is not None:
        write_atomically(folder / "plan.json", json.dumps(dataclasses.asdict(plan), indent=1))
    write_atomically(folder / "env.json", json.dumps(environment(), indent=1))
    store = checkpoint_store(config, folder)
    start = (resume if isinstance(resume, Path) else store.latest()) if resume else None
    checkpoint = store.load(start) if start is not None else None
    record = MetricsFile(folder / "metrics.jsonl", keep_through_step=checkpoint.step if checkpoint else None)
    logs = trackers(
        config.report_to,
        folder=folder,
        run_name=config.run_name or folder.name,
        config=config.model_dump(mode="json"),
        start_step=checkpoint.step if checkpoint else 0,
    )

    def emit(event: Event) -> None:
        record(event)
        track(logs, event)
        sink(event)

    try:
        if resume and checkpoint is None:
            emit(Notice("no checkpoint was written yet: the run starts from the beginning"))
        job = _Job(config, folder, emit, group)
        if checkpoint:
            _check_processes(folder, group)
        progress = restore(job.method, checkpoint) if checkpoint else Progress()
        result = job.run(store, progress, resumed_from=start.name if start else None)
        job.export()
    except Interrupted:
        record.close()
        write_report(folder)
        raise
    finally:
        record.close()
    write_report(folder)
    return _report(folder, result)


def checkpoint_store(config: RunConfig, folder: Path) -> DeltaStore:
    """The checkpoints of the run in `folder`; all of them are full, but for zeroth order that is asked for less."""
    every = config.method.snapshot_steps if isinstance(config.method, ZoMethod) else None
    return DeltaStore(folder / "checkpoints", keep=config.save_total_limit, snapshot_steps=every or 1)


def _follow(config: RunConfig, group: Group, *, resume: bool | Path) -> TrainReport:
    """A further process of a run: the same steps, and nothing written."""

    def nowhere(event: Event) -> None:
        """Process 0 tells what happens."""

    config, _ = resolve(config, nowhere)
    group.barrier()  # the folder is opened, and emptied if asked, by process 0
    folder = Path(config.output_dir)
    store = Follower(folder / "checkpoints", keep=config.save_total_limit, snapshot_steps=1)
    start = (resume if isinstance(resume, Path) else store.latest()) if resume else None
    job = _Job(config, folder, nowhere, group)
    progress = restore(job.method, store.load(start)) if start is not None else Progress()
    result = job.run(store, progress, resumed_from=start.name if start else None)
    if config.fsdp:
        job.method.export(folder)  # hands over this process's share and writes nothing
    return TrainReport(folder, {}, result.after, result.steps, 0.0, result.peak_bytes, result.reason)


def _check_processes(folder: Path, group: Group) -> None:
    """Raises `CheckpointError` when another number of processes, with other batches, would continue the run."""
    started = [r for r in read_metrics(folder / "metrics.jsonl") if r["event"] == RunStarted.__name__]
    before = int(started[-1].get("processes", 1)) if started else group.world
    if before != group.world:
        raise CheckpointError(
            f"--resume: the run in {folder} was trained by {before} processes, whose batches {group.world} would not "
            f"repeat; use torchrun --nproc-per-node {before}, or start again with --overwrite"
        )


def dry_run(config: RunConfig, *, sink: Sink) -> DryRun:
    """What would be trained, without loading the model's weights."""
    config, _ = resolve(config, sink)
    source = ModelSource.from_config(config)
    tokenizer = load_tokenizer(source)
    kind = load_config(source).model_type
    batches = _train_batches(config, tokenizer, kind, device=torch.device("cpu"), sink=sink)
    first = batches.micro_batches(0)
    counts = {
        "samples": float(batches.samples),
        "steps": float(_total_steps(config, batches)),
        "steps_per_epoch": float(batches.steps_per_epoch),
        "tokens_in_first_step": float(sum(batch.tokens for batch in first)),
        "trained_in_first_step": float(sum(batch.weight for batch in first)),
    }
    return DryRun(dump_run(config), preview(batches.example(0), tokenizer), counts)


class _Job:
    """One run's objects, built in the order in which they fail cheaply: data before weights, checks before steps."""

    def __init__(self, config: RunConfig, folder: Path, sink: Sink, group: Group) -> None:
        self._config, self._folder, self._sink, self._group = config, folder, sink, group
        self._device = group.device(pick_device(config.device))
        source = ModelSource.from_config(config)
        tokenizer = load_tokenizer(source)
        kind = load_config(source).model_type
        self._batches = _train_batches(config, tokenizer, kind, device=self._device, sink=sink, processes=group.world)
        self._eval_sets = name_apart([_open(config, section, tokenizer, kind, sink) for section in config.eval_dataset])
        self._loaded: LoadedModel = load_model(source, device=self._device, sink=sink)
        method = build_method(config, self._loaded.model, shards=group)
        self.method = MeasuredFirstStep(
            method if group.world == 1 else DataParallel(method, group, even=config.fsdp),
            self._loaded.model,
            vocabulary=self._loaded.model.config.vocab_size,
        )
        self._recomputing = config.gradient_checkpointing
        set_gradient_checkpointing(self._loaded.model, self._recomputing)
        self._loss = ModelLoss(self._loaded.model, chunk_tokens=config.loss_chunk_tokens)
        self._objective = self._training_loss()
        self._meter = MemoryMeter(self._device)
        self._check()
        self._advise()

    def run(self, store: CheckpointStore, progress: Progress, *, resumed_from: str | None) -> LoopResult:
        config, total, start = self._config, _total_steps(self._config, self._batches), progress.step
        parameters = list(self._loaded.model.parameters())
        self._sink(
            RunStarted(
                method=self.method.title,
                processes=self._group.world,
                total_steps=total,
                start_step=progress.step,
                trainable_parameters=sum(t.numel() for t in self.method.trainable.values()),
                total_parameters=sum(p.numel() for p in parameters),
                resumed_from=resumed_from,
            )
        )
        warmup = warmup_steps(steps=config.warmup_steps, ratio=config.warmup_ratio, total=total)
        settings = LoopSettings(
            schedule=Schedule(config.schedule, config.peak_learning_rate, total, warmup),
            logging_steps=config.logging_steps,
            eval_steps=config.eval_steps,
            save_steps=config.save_steps,
            metric=config.metric_for_best_model,
            maximize=config.maximize_metric,
            patience=config.early_stopping_patience,
            restore_best=config.load_best_model_at_end,
        )
        self._meter.reset()
        result = run_loop(
            self.method,
            self._objective,
            self._batches,
            settings=settings,
            store=store,
            evaluate=self._evaluate,
            meter=self._meter,
            limit=self._limit(),
            sink=self._sink,
            progress=progress,
            agree=lambda stop: self._group.either(stop, self._device),
        )
        if self.method.peaks and self._group.leads and not config.fsdp:  # the plan is of one process
            predicted = predict_step(config, self._batches.micro_batches(start))
            record = compare(self.method.peaks, predicted)
            write_atomically(self._folder / "memory.json", json.dumps(record, indent=1))
        return result

    def export(self) -> None:
        """The trained model or adapter, with its tokenizer, in `model/`; an older one is replaced once it is whole."""
        target, fresh = self._folder / "model", self._folder / ".partial-model"
        shutil.rmtree(fresh, ignore_errors=True)
        self.method.export(fresh)
        self._loaded.tokenizer.save_pretrained(str(fresh))
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)

    def _training_loss(self) -> LossFn:
        """What steps make smaller; evaluations always report the cross-entropy."""
        match self._config.loss:
            case CrossEntropyLoss():
                return self._loss
            case ScoreLoss(function="accuracy"):
                return Accuracy(self._loss)
            case ScoreLoss() as score:
                return ScoredAnswers(self._loaded.model, self._loaded.tokenizer, score)

    def _limit(self) -> StepLimit:
        """The budget, and what may be given up for it: smaller micro-batches, then stored activations."""
        return StepLimit(
            self._loaded.model,
            self.method,
            budget=tensor_budget(self._config),
            device=self._device,
            # Several processes would have to concede together: there, memory that runs out ends the run.
            concessions=[Halvings(self._batches.halve), self._recompute] if self._group.world == 1 else [],
        )

    def _recompute(self) -> str | None:
        """A concession: activations are recomputed in the backward pass; nothing to give where there is none."""
        if self._recomputing or isinstance(self._config.method, ZoMethod):
            return None
        self._recomputing = True
        set_gradient_checkpointing(self._loaded.model, True)
        return "gradient_checkpointing: true"

    def _check(self) -> None:
        """Everything that can be refused before step 0."""
        self._loss.check(self._batches.micro_batches(0)[0].input_ids[:1, :8])
        nbytes = sum(t.nbytes for t in self.method.state().tensors.values())
        weights = sum(t.nbytes for t in self.method.trainable.values())
        check_disk(self._folder, checkpoint_bytes=nbytes, keep=self._config.save_total_limit, export_bytes=weights)

    def _advise(self) -> None:
        """What the user would want to know before waiting."""
        flags = set(environment()["cpu"]["flags"])
        if self._device.type == "cpu" and self._config.dtype != "fp32" and not flags & HALF_PRECISION_FLAGS:
            self._sink(
                Notice(
                    f"dtype: {self._config.dtype}: this CPU has no instructions for it, so each step may take several "
                    "times as long as with dtype: fp32 (which needs twice the memory for weights)"
                )
            )

    def _evaluate(self) -> dict[str, Metrics]:
        """Metrics of every eval dataset, in order. Answers are generated where a dataset has a verifier."""
        config, model, tokenizer = self._config, self._loaded.model, self._loaded.tokenizer

        def answer(prompts: Sequence[Prompt]) -> list[str]:
            return generate_batch(model, tokenizer, prompts, config.generation)

        with eval_mode(model):
            return {
                name: evaluate_dataset(
                    self._loss,
                    dataset,
                    batch_size=config.per_device_eval_batch_size,
                    limit=config.eval_limit,
                    pad_id=pad_id(tokenizer),
                    device=self._device,
                    generate=answer if config.eval_generate else None,
                )
                for name, dataset in self._eval_sets.items()
            }


def _open(
    config: RunConfig, section: Dataset, tokenizer: PreTrainedTokenizerBase, model_type: str, sink: Sink
) -> EncodedDataset:
    return open_dataset(
        section,
        tokenizer=tokenizer,
        max_length=config.max_length,
        train_on_prompt=config.train_on_prompt,
        seed=config.seed,
        sink=sink,
        model_type=model_type,
    )


def _train_batches(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    model_type: str,
    *,
    device: torch.device,
    sink: Sink,
    processes: int = 1,
) -> TrainBatches:
    return TrainBatches(
        [_open(config, section, tokenizer, model_type, sink) for section in config.dataset],
        batch_size=config.per_device_train_batch_size,
        accumulation=config.gradient_accumulation_steps * processes,
        seed=config.seed,
        pad_id=pad_id(tokenizer),
        device=device,
    )


def _total_steps(config: RunConfig, batches: TrainBatches) -> int:
    return batches.total_steps(epochs=config.num_train_epochs, max_steps=config.max_steps)


def _report(folder: Path, result: LoopResult) -> TrainReport:
    """The run in numbers; what was measured before training comes from the record, also after a resume."""
    records = read_metrics(folder / "metrics.jsonl")
    before = {
        str(record["split"]).removeprefix("before:"): dict(record["metrics"])
        for record in records
        if record["event"] == EvalDone.__name__ and str(record["split"]).startswith("before:")
    }
    seconds = sum(float(record["seconds"]) for record in records if record["event"] == RunFinished.__name__)
    return TrainReport(folder, before, result.after, result.steps, seconds, result.peak_bytes, result.reason)
