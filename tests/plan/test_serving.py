"""The plan of serving: weights and the cache of all slots, before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from lowmem.errors import BudgetError
from lowmem.models.modes import eval_mode
from lowmem.models.slots import Slots
from lowmem.plan.devices import CPU, Device
from lowmem.plan.serving import KV_DTYPES, predict_serving, require_room
from lowmem.plan.tracker import LiveBytes
from tests.tiny import run_config, tiny_config, tiny_model

DEVICE = Device(CPU, None)


def bill(layers: int = 2, **asked: Any) -> Any:
    keys: dict[str, Any] = {"slots": 3, "context": 64, "kv_dtype": "model"} | asked
    return predict_serving(run_config(), tiny_config("llama", num_hidden_layers=layers), DEVICE, **keys)


def test_the_plan_is_what_the_slots_take() -> None:
    model = tiny_model("llama")
    tracker = LiveBytes()
    tracker.track_module(model)
    with tracker, eval_mode(model):
        slots = Slots(model, slots=3, context=64, pad_id=0)
        for slot in range(3):
            slots.extend(slot, [5] * 63)
        slots.step({0: 5, 1: 6, 2: 7})
    planned = bill()
    assert planned.cache == slots.nbytes
    assert planned.peak == pytest.approx(max(tracker.peaks.values()), rel=0.02)


def test_a_deep_model_is_extrapolated_from_two_shallow_ones() -> None:
    deep, shallow, two = bill(9), bill(5), bill(4)
    layer = shallow.weights - two.weights
    assert deep.weights == shallow.weights + 4 * layer
    assert deep.cache == pytest.approx(9 / 5 * shallow.cache)


def test_fewer_bits_and_fewer_slots_need_less() -> None:
    totals = [bill(kv_dtype=kv_dtype).cache for kv_dtype in KV_DTYPES]
    assert totals == sorted(totals, reverse=True)
    assert bill(slots=6).cache == 2 * bill(slots=3).cache


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    found = bill(slots=8)
    require_room(found, found.total)
    with pytest.raises(BudgetError, match=r"KV cache \(model\) .*; 7 slots of 64 tokens would fit"):
        require_room(found, found.total - 1)
    with pytest.raises(BudgetError, match="the model alone leaves no room for a request"):
        require_room(found, found.weights)
