"""Two shallow simulations tell what a deep one would."""

from __future__ import annotations

from typing import Any

import pytest

from lowmem.models.shapes import known_shape
from lowmem.plan.extrapolate import Prediction, _summary, between, predict, simulated_depths
from lowmem.plan.fakes import BatchShape
from lowmem.plan.simulate import Work, simulate
from tests.tiny import run_config, tiny_config


def assert_same(predicted: Prediction, full: Prediction, *, within: float) -> None:
    assert predicted.phases.keys() == full.phases.keys()
    for name, peak in full.phases.items():
        assert predicted.phases[name].nbytes == pytest.approx(peak.nbytes, rel=within), name
        assert sum(predicted.phases[name].components.values()) == pytest.approx(peak.nbytes, rel=0.01)
    assert predicted.resident == pytest.approx(full.resident, rel=within)
    assert (predicted.parameters, predicted.trainable) == (full.parameters, full.trainable)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["full", "lora", "zo"])
def test_a_deep_model_is_predicted_from_two_shallow_ones(method: str, checkpointing: bool) -> None:
    shape = tiny_config("llama", num_hidden_layers=9)
    config = run_config(method={"kind": method}, gradient_checkpointing=checkpointing)
    work = Work(BatchShape(2, 24), BatchShape(4, 24))
    assert_same(predict(config, shape, work), _summary(simulate(config, shape, work)), within=1e-3)


def test_layers_of_two_kinds_are_met_in_both_depths() -> None:
    kinds = ["sliding_attention", "full_attention"] * 6
    shape = tiny_config("gemma3", num_hidden_layers=12, layer_types=kinds)
    assert simulated_depths(shape) == (2, 4)
    work = Work(BatchShape(2, 24))
    config = run_config()
    assert_same(predict(config, shape, work), _summary(simulate(config, shape, work)), within=1e-3)


def test_a_shallow_model_is_simulated_whole() -> None:
    assert simulated_depths(tiny_config("llama", num_hidden_layers=5)) is None
    assert simulated_depths(tiny_config("llama", num_hidden_layers=6)) == (2, 3)


def test_micro_batches_in_between_are_interpolated() -> None:
    config, shape = run_config(), tiny_config("llama", num_hidden_layers=6)
    one, four, eight = (predict(config, shape, Work(BatchShape(n, 32))) for n in (1, 4, 8))
    guess = between(one, eight, (1, 8), 4)
    assert guess.peak.nbytes == pytest.approx(four.peak.nbytes, rel=0.01)


DEEP: list[tuple[str, dict[str, Any]]] = [
    (model, {"method": {"kind": method}, "gradient_checkpointing": checkpointing, "dtype": "bf16"})
    for model in ("opt-1.3b", "llama-2-7b")
    for method in ("full", "lora")
    for checkpointing in (False, True)
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "keys"), DEEP, ids=[f"{m}-{k['method']['kind']}-{k['gradient_checkpointing']}" for m, k in DEEP]
)
def test_published_models_are_predicted_within_a_thousandth(model: str, keys: dict[str, Any]) -> None:
    shape, config, work = known_shape(model), run_config(**keys), Work(BatchShape(2, 512), BatchShape(8, 512))
    assert shape is not None
    assert_same(predict(config, shape, work), _summary(simulate(config, shape, work)), within=1e-3)
