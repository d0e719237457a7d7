"""What serving a model takes: its weights, and the keys and values of every request that runs at once.

The model and its slots (`lowmem.models.slots`) run on fake tensors at two depths, as a training step does
(`lowmem.plan.extrapolate`); no weights are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowmem.config.run import RunConfig
from lowmem.errors import BudgetError
from lowmem.models.modes import eval_mode
from lowmem.models.slots import KvDtype
from lowmem.plan.devices import Device
from lowmem.plan.extrapolate import simulated_depths, value_at
from lowmem.plan.fakes import fake_model, with_depth
from lowmem.plan.generation import GenerationShape, generate_once
from lowmem.plan.tracker import KV_CACHE, WEIGHTS, LiveBytes
from lowmem.units import format_bytes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

KV_DTYPES: tuple[KvDtype, ...] = ("model", "int8", "int4")


@dataclass(frozen=True)
class ServingBill:
    """Bytes of `slots` requests of `context` tokens at once. `peak`: of all tensors; `total`: with the device's own."""

    slots: int
    context: int
    kv_dtype: KvDtype
    weights: int
    cache: int
    peak: int
    total: int


def predict_serving(
    config: RunConfig, shape: PretrainedConfig, device: Device, *, slots: int, context: int, kv_dtype: KvDtype
) -> ServingBill:
    """The bill of serving `config`'s model, stored as its `dtype` and `quantization` say."""
    asked = GenerationShape(slots, max(1, context - 1), 1, kv_dtype)
    depths = simulated_depths(shape)
    if depths is None:
        weights, cache, peak = _measured(config, shape, asked)
    else:
        low, high = (_measured(config, with_depth(shape, depth), asked) for depth in depths)
        layers: int = shape.get_text_config().num_hidden_layers
        weights, cache, peak = (value_at(a, b, depths, layers) for a, b in zip(low, high, strict=True))
    return ServingBill(slots, context, kv_dtype, weights, cache, peak, device.bill(peak))


def require_room(bill: ServingBill, budget: int) -> None:
    """Raises `BudgetError` with the bill, and how many slots or tokens would fit, when `bill` exceeds `budget`."""
    if bill.total <= budget:
        return
    rest = budget - (bill.total - bill.cache)
    each = max(1, bill.cache // bill.slots)
    advice = (
        f"{rest // each} slots of {bill.context} tokens would fit"
        if rest >= each
        else "the model alone leaves no room for a request; quantize it, or take a smaller one"
    )
    raise BudgetError(
        f"serving {bill.slots} requests of {bill.context} tokens needs {format_bytes(bill.total)} of "
        f"{format_bytes(budget)}: weights {format_bytes(bill.weights)}, KV cache ({bill.kv_dtype}) "
        f"{format_bytes(bill.cache)}, at work {format_bytes(bill.peak - bill.weights - bill.cache)}; {advice}, or "
        "lower --slots or --context, or store the cache as int8 or int4"
    )


def _measured(config: RunConfig, shape: PretrainedConfig, asked: GenerationShape) -> tuple[int, int, int]:
    """Weights, cache and peak of a model of this depth."""
    tracker = LiveBytes(vocabulary=shape.get_text_config().vocab_size)
    mode, model = fake_model(config, shape)
    with mode, tracker:
        tracker.track_module(model)
        weights = tracker.components.get(WEIGHTS, 0)
        with eval_mode(model):
            generate_once(model, asked, tracker)
        cache = max(peak.components.get(KV_CACHE, 0) for peak in tracker.places.values())
    return weights, cache, max(tracker.peaks.values())
