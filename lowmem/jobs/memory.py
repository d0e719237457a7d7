"""What a run was planned to need and what its first step took: the two columns of the report's memory table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lowmem.config.loss import ScoreLoss
from lowmem.config.method import AdapterMethod, ZoMethod
from lowmem.config.run import RunConfig
from lowmem.data.batch import Batch
from lowmem.events import Sink
from lowmem.jobs.plan import plan_cache, this_device, with_default_optimizer
from lowmem.plan.cache import cached_predict
from lowmem.plan.fakes import BatchShape
from lowmem.plan.fit import Plan
from lowmem.plan.plan import resolve_auto, shape_of
from lowmem.plan.simulate import Work
from lowmem.train.measured import INFERENCE
from lowmem.units import parse_bytes

COMPARED = ("forward", "backward", "update")


def resolve(config: RunConfig, sink: Sink) -> tuple[RunConfig, Plan | None]:
    """`config` with everything left to the planner decided. No plan where there is neither a budget nor an `auto`."""
    config = with_default_optimizer(config, sink)
    budget = None if config.memory_budget is None else parse_bytes(config.memory_budget)
    return resolve_auto(config, this_device(config.device), budget=budget, cache=plan_cache(), sink=sink)


def tensor_budget(config: RunConfig) -> int | None:
    """What `memory_budget` leaves for tensors, once the process itself has had its share."""
    if config.memory_budget is None:
        return None
    method = config.method
    adapters = isinstance(method, AdapterMethod) or (isinstance(method, ZoMethod) and method.train_adapter is not None)
    return parse_bytes(config.memory_budget) - this_device(config.device).bill(0, adapters=adapters)


def predict_step(config: RunConfig, micro_batches: Sequence[Batch]) -> dict[str, int]:
    """Bytes by phase of a step over batches of these sizes; empty where a task's options are rows of their own, and
    where the loss generates answers."""
    if isinstance(config.loss, ScoreLoss):
        return {}
    largest = max(micro_batches, key=lambda batch: batch.input_ids.numel())
    options = largest.options
    if options is not None and options.token_ids is None:
        return {}
    rows, tokens = largest.input_ids.shape
    shape = BatchShape(
        rows,
        tokens,
        None if options is None else options.count,
        packed=largest.attention_mask is None,
        trained=largest.positions[0].numel() if options is None else None,
    )
    work = Work(shape, micro_batches=min(2, len(micro_batches)))
    prediction = cached_predict(config, shape_of(config), work, granularity=1, folder=plan_cache())
    return {phase: peak.nbytes for phase, peak in prediction.phases.items() if phase in COMPARED}


def compare(measured: Mapping[str, int], predicted: Mapping[str, int]) -> dict[str, dict[str, int | None]]:
    """The record of `memory.json`: plain inference is measured only."""
    return {
        phase: {"predicted": None if phase == INFERENCE else predicted.get(phase), "measured": nbytes}
        for phase, nbytes in measured.items()
    }
