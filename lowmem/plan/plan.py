"""The plan of a run: every candidate simulated, judged against the budget, and one of them chosen."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lowmem.config.dataset import ProceduralData, QaData, TaskData, TextData
from lowmem.config.loss import ScoreLoss
from lowmem.config.method import AutoMethod
from lowmem.config.run import RunConfig
from lowmem.errors import BudgetError
from lowmem.events import Notice, Sink
from lowmem.models.load import load_config
from lowmem.models.packed_quantizer import packed_headers
from lowmem.models.shapes import known_shape
from lowmem.models.source import ModelSource
from lowmem.plan.cache import cached_predict
from lowmem.plan.devices import Device
from lowmem.plan.extrapolate import Prediction, between
from lowmem.plan.fakes import BatchShape
from lowmem.plan.fit import Bill, Plan, Row, choose, explain_choice, nearest_miss, verdict
from lowmem.plan.generation import GenerationShape
from lowmem.plan.ladder import Rung, allowed, apply, micro_batches, over_packed, relative_speed, rungs
from lowmem.plan.simulate import Work
from lowmem.plan.table import bill_lines
from lowmem.units import format_bytes

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def shape_of(config: RunConfig) -> PretrainedConfig:
    """The architecture of `config`'s model: known by name, else read from where the model is. No weights are read."""
    known = known_shape(config.model) if config.revision is None and not Path(config.model).exists() else None
    return load_config(ModelSource.from_config(config)) if known is None else known


def work_of(config: RunConfig, examples: int, *, tokens: int | None = None) -> Work:
    """The largest micro-batch that `config` can meet: `examples` rows of `max_length`, or of `tokens`, all trained."""
    length = tokens or config.max_length
    task = all(isinstance(data, TaskData) for data in config.dataset)
    packed = all(isinstance(data, TextData) for data in config.dataset)
    options = 2 if task else None
    evaluated = BatchShape(config.per_device_eval_batch_size, length, options) if config.eval_dataset else None
    several = examples < config.effective_batch_size  # then gradients lie beside the next micro-batch's activations
    batch = BatchShape(examples, length, options, packed=packed)
    return Work(batch, evaluated, _generation(config), _scored(config, batch), micro_batches=2 if several else 1)


def _generation(config: RunConfig) -> GenerationShape | None:
    """The answers of an evaluation, where its data certainly have a verifier (other formats show it in their rows)."""
    answered = any(isinstance(data, QaData | ProceduralData) for data in config.eval_dataset)
    if not (answered and config.eval_generate):
        return None
    return GenerationShape(config.per_device_eval_batch_size, config.max_length, config.generation.max_new_tokens)


def _scored(config: RunConfig, batch: BatchShape) -> GenerationShape | None:
    """The answers of a score; accuracy reads the options' likelihoods instead."""
    loss = config.loss
    if not isinstance(loss, ScoreLoss) or loss.function == "accuracy":
        return None
    return GenerationShape(batch.examples, batch.tokens, loss.max_new_tokens)


def plan_run(
    config: RunConfig,
    device: Device,
    *,
    budget: int,
    cache: Path | None,
    sink: Sink,
    tokens: int | None = None,
    only_allowed: bool = False,
) -> Plan:
    """The table of all candidates and the choice. With `only_allowed`, candidates that may not run are left out."""
    shape = shape_of(config)
    planner = _Planner(config, shape, device, budget, cache, tokens or config.max_length)
    rows: list[Row] = []
    ladder = rungs(config) if packed_headers(shape) is None else over_packed(rungs(config), config.method)
    for rung in ladder:
        permitted = allowed(config, rung)
        if only_allowed and not permitted:
            continue
        if rung.base != "none" and not _has_bitsandbytes():
            sink(Notice(f"{rung.name} is not planned: bitsandbytes is not installed (pip install 'lowmem[bnb]')"))
            continue
        rows += planner.rows(rung, permitted=permitted)
    rows.sort(key=lambda row: (row.tier, -row.speed))
    chosen = choose(rows)
    return Plan(
        model=config.model,
        parameters=planner.parameters,
        tokens=tokens or config.max_length,
        device=device.costs.kind,
        base=device.bill(0),
        budget=budget,
        rows=tuple(rows),
        chosen=chosen,
        nearest=nearest_miss(rows) if chosen is None else None,
        reason=explain_choice(rows, chosen),
    )


def require_choice(plan: Plan) -> Row:
    """The chosen row. Raises `BudgetError` with the bill of the nearest miss when nothing that is allowed fits."""
    if plan.chosen is not None:
        return plan.chosen
    near = plan.nearest
    if near is None:
        raise BudgetError(f"{plan.model}: there is no candidate to plan; allow more methods under method.allow")
    what = " ".join(near.changes) or "as it is"
    if near.verdict != "no":
        advice = f"{near.name} would fit; set {what}"
    else:
        excess = format_bytes(near.total - plan.budget)
        advice = f"the nearest is {near.name} ({what}), {excess} too large; lower max_length or take a smaller model"
    bill = "\n".join(bill_lines(plan, near))
    raise BudgetError(
        f"{plan.model}: nothing that the config allows fits {format_bytes(plan.budget)} on {plan.device}; "
        f"{advice}\n{bill}"
    )


def resolve_auto(
    config: RunConfig, device: Device, *, budget: int | None, cache: Path | None, sink: Sink
) -> tuple[RunConfig, Plan | None]:
    """`config` with every choice made: `auto` keys, and lossless concessions where `budget` asks for them.

    Untouched, with no plan, when there is neither an `auto` key nor a budget. Raises `BudgetError`.
    """
    if budget is None and device.total is not None and is_auto(config):
        budget = device.total
    if budget is None:
        return config, None
    plan = plan_run(config, device, budget=budget, cache=cache, sink=sink, only_allowed=True)
    row = require_choice(plan)
    rung = next(rung for rung in rungs(config) if rung.name == row.name)
    resolved = apply(config, rung, examples=row.examples, checkpointing=row.checkpointing)
    if row.changes:
        sink(Notice(f"planned for {format_bytes(budget)}: {row.title} needs {format_bytes(row.total)} ({plan.reason})"))
    return resolved, plan


def is_auto(config: RunConfig) -> bool:
    """Whether something was left to the planner."""
    return bool(config.auto) or isinstance(config.method, AutoMethod)


class _Planner:
    """Simulates the candidates of one config; the smallest micro-batch only where the asked one does not fit."""

    def __init__(
        self, config: RunConfig, shape: PretrainedConfig, device: Device, budget: int, cache: Path | None, tokens: int
    ) -> None:
        self._config, self._shape, self._device = config, shape, device
        self._budget, self._cache, self._tokens = budget, cache, tokens
        self.parameters = 0

    def rows(self, rung: Rung, *, permitted: bool) -> Iterator[Row]:
        """A row with and, for back-propagation, one without checkpointing, at the largest micro-batch that fits."""
        asked = self._config.per_device_train_batch_size
        for checkpointing in self._checkpointing(rung):
            prediction = self._predict(rung, asked, checkpointing)
            self.parameters = prediction.parameters - (prediction.trainable if rung.adapts else 0)
            row = self._row(rung, prediction, asked, checkpointing, permitted)
            if row.verdict != "fits" and asked > 1 and self._may_fit(prediction):
                row = self._smaller(rung, prediction, checkpointing, permitted)
            yield row

    def _checkpointing(self, rung: Rung) -> tuple[bool, ...]:
        if not rung.back_propagates:
            return (False,)
        return (True,) if self._config.gradient_checkpointing else (False, True)

    def _may_fit(self, prediction: Prediction) -> bool:
        """What stays between steps, and what an update needs, do not shrink with the batch."""
        update = prediction.phases.get("update")
        fixed = max(prediction.resident, update.nbytes if update is not None else 0)
        return self._device.bill(fixed) <= self._budget

    def _smaller(self, rung: Rung, large: Prediction, checkpointing: bool, permitted: bool) -> Row:
        """The row of the largest micro-batch that fits, interpolated and then made certain; else of a single row."""
        asked = self._config.per_device_train_batch_size
        sizes = micro_batches(asked)[1:]

        def row(prediction: Prediction, examples: int) -> Row:
            return self._row(rung, prediction, examples, checkpointing, permitted)

        # Shrinking everything but the resident bytes in proportion overestimates, so where it fits no more is needed.
        moving = large.peak.nbytes - large.resident
        if self._device.bill(large.resident + moving * sizes[0] // asked) <= self._budget:
            half = row(self._predict(rung, sizes[0], checkpointing), sizes[0])
            if half.verdict == "fits":
                return half
        single = self._predict(rung, 1, checkpointing)
        for examples in sizes[:-1]:
            if row(between(single, large, (1, asked), examples), examples).verdict == "fits":
                exact = row(self._predict(rung, examples, checkpointing), examples)
                if exact.verdict == "fits":
                    return exact
        return row(single, 1)

    def _predict(self, rung: Rung, examples: int, checkpointing: bool) -> Prediction:
        config = apply(self._config, rung, examples=examples, checkpointing=checkpointing)
        return cached_predict(
            config,
            self._shape,
            work_of(self._config, examples, tokens=self._tokens),
            granularity=self._device.costs.granularity,
            folder=self._cache,
        )

    def _row(self, rung: Rung, prediction: Prediction, examples: int, checkpointing: bool, permitted: bool) -> Row:
        tensors = prediction.peak.nbytes
        total = self._device.bill(tensors, adapters=rung.adapts)
        margin = self._device.margin(tensors)
        config = apply(self._config, rung, examples=examples, checkpointing=checkpointing)
        return Row(
            name=rung.name,
            tier=rung.tier,
            examples=examples,
            accumulation=config.gradient_accumulation_steps,
            checkpointing=checkpointing,
            bills=tuple(Bill(name, peak.nbytes, peak.components) for name, peak in prediction.phases.items()),
            tensors=tensors,
            total=total,
            verdict=verdict(total, margin=margin, budget=self._budget),
            allowed=permitted,
            speed=relative_speed(rung, checkpointing=checkpointing, tokens=examples * self._tokens),
            changes=_changes(self._config, config, rung),
            note=rung.note,
        )


def _changes(before: RunConfig, after: RunConfig, rung: Rung) -> tuple[str, ...]:
    """The overrides that lead from one config to the other, as they are typed."""
    said = []
    if type(before.method) is not type(after.method):
        said.append(f"method={rung.kind}")
    updates = [getattr(config.method, "update", "after_backward") for config in (before, after)]
    if updates[0] != updates[1]:
        said.append(f"method.update={updates[1]}")
    old, new = (getattr(config.method, "train_adapter", None) for config in (before, after))
    if new is not None and old is None:
        said.append("method.train_adapter.kind=lora")
    if before.quantization.kind != after.quantization.kind:
        said.append(f"quantization={after.quantization.kind}")
    if before.optimizer.kind != after.optimizer.kind and rung.back_propagates:
        said.append(f"optimizer={after.optimizer.kind}")
    for key in ("per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing"):
        value = getattr(after, key)
        if getattr(before, key) != value:
            said.append(f"{key}={str(value).lower()}")
    return tuple(said)


def _has_bitsandbytes() -> bool:
    return importlib.util.find_spec("bitsandbytes") is not None
