"""Updates inside backward can be planned: a tiny run takes what was planned, and large models fit what they should."""

from __future__ import annotations

from typing import Any

import pytest

from lowmem.config.run import RunConfig
from lowmem.methods.build import build_method
from lowmem.models.loss import ModelLoss
from lowmem.models.shapes import known_shape
from lowmem.plan.extrapolate import predict, simulated_depths
from lowmem.plan.fakes import BatchShape
from lowmem.plan.ladder import allowed, forwards_per_step, rungs
from lowmem.plan.simulate import Work
from lowmem.train.measured import MeasuredFirstStep
from tests.tiny import run_config, tiny_config, tiny_model

METHODS: dict[str, dict[str, Any]] = {
    "gum": {"kind": "gum", "rank": 8, "gamma": 1},
    "gum, per layer, bf16": {"kind": "gum", "rank": 8, "gamma": 1, "clipping": "per_layer", "state_dtype": "bf16"},
    "galore": {"kind": "galore", "rank": 8},
    "galore, per layer": {"kind": "galore", "rank": 8, "clipping": "per_layer"},
    "full, two passes": {"kind": "full", "update": "in_backward"},
    "full, per layer": {"kind": "full", "update": "in_backward", "clipping": "per_layer"},
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("parts", [1, 2])
def test_the_plan_is_within_two_percent_of_a_real_step(name: str, parts: int) -> None:
    config = run_config(method=METHODS[name])
    shape = BatchShape(4, 24)
    model = tiny_model("llama")
    measured = MeasuredFirstStep(build_method(config, model), model, vocabulary=96)
    loss = ModelLoss(model, chunk_tokens=config.loss_chunk_tokens)
    measured.step(loss, [shape.batch()] * parts, lr=1e-4, step=0)
    planned = predict(config, tiny_config("llama"), Work(shape, micro_batches=parts))
    for phase in ("forward", "backward", "update"):
        assert planned.phases[phase].nbytes == pytest.approx(measured.peaks[phase], rel=0.02), phase


@pytest.mark.slow
@pytest.mark.parametrize(("model", "limit"), [("opt-1.3b", 4.0), ("llama-2-7b", 16.0)])
def test_projected_finetuning_of_large_models_fits(model: str, limit: float) -> None:
    config = RunConfig.model_validate(
        {
            "model": model,
            "dataset": [{"format": "text", "path": "none"}],
            "method": {"kind": "gum", "rank": 128, "gamma": 2, "state_dtype": "bf16", "clipping": "per_layer"},
            "gradient_checkpointing": True,
        }
    )
    shape = known_shape(model)
    assert shape is not None
    peak = predict(config, shape, Work(BatchShape(1, 512, packed=True))).peak
    assert peak.nbytes <= limit * 2**30, peak


def test_the_simulated_depths_leave_room_for_drawn_layers() -> None:
    shape = tiny_config("llama", num_hidden_layers=30)
    assert simulated_depths(shape) == (2, 3)
    assert simulated_depths(shape, beyond=2) == (3, 4)


def test_an_update_inside_backward_is_offered_and_a_second_pass_is_paid_for() -> None:
    config = run_config(method={"kind": "full"})
    rows = {rung.name: rung for rung in rungs(config) if allowed(config, rung)}
    assert list(rows) == ["full, adamw", "full, adamw in backward"]
    costs = [forwards_per_step(rung, checkpointing=False) for rung in rows.values()]
    assert costs == [3.0, 6.0]
    free = run_config(method={"kind": "full"}, max_grad_norm=None)
    inside = next(rung for rung in rungs(free) if rung.name == "full, adamw in backward")
    assert forwards_per_step(inside, checkpointing=False) == 3.0


def test_what_a_config_asks_for_is_kept() -> None:
    method = {"kind": "full", "update": "in_backward", "clipping": "per_layer"}
    config = run_config(method=method)
    (only,) = [rung for rung in rungs(config) if allowed(config, rung)]
    assert only.changes["method"] == method
    gum = run_config(method={"kind": "gum", "rank": 32})
    (only,) = [rung for rung in rungs(gum) if allowed(gum, rung)]
    assert (only.tier, only.changes["method"]["rank"]) == (2, 32)
    auto = run_config(method={"kind": "auto", "allow": ["gum", "lora"]})
    assert [rung.name for rung in rungs(auto) if allowed(auto, rung)] == ["gum", "lora"]
