"""Every update rule and every method can be planned, and the plan is what a real first step takes."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from lowmem.config.optimizer import Optimizer
from lowmem.methods.build import build_method
from lowmem.models.checkpointing import set_gradient_checkpointing
from lowmem.models.loss import ModelLoss
from lowmem.plan.extrapolate import predict
from lowmem.plan.fakes import BatchShape
from lowmem.plan.simulate import Work
from lowmem.train.measured import MeasuredFirstStep
from tests.tiny import run_config, tiny_config, tiny_model

KINDS = [section.model_fields["kind"].default for section in get_args(get_args(Optimizer)[0])]


PAIRED: list[dict[str, Any]] = [
    {"kind": "lorsum"},
    {"kind": "lorsum", "momentum_form": "lowrank"},
    {"kind": "lorsum", "mode": "gauss_seidel", "metric": "shampoo"},
    {"kind": "lora_muon"},
]


def check_plan(config: Any) -> None:
    shape = BatchShape(4, 24)
    model = tiny_model("llama")
    method = build_method(config, model)
    set_gradient_checkpointing(model, config.gradient_checkpointing)
    measured = MeasuredFirstStep(method, model, vocabulary=96)
    measured.step(ModelLoss(model, chunk_tokens=config.loss_chunk_tokens), [shape.batch()], lr=1e-4, step=0)
    planned = predict(config, tiny_config("llama"), Work(shape))
    for phase in ("forward", "backward", "update"):
        assert planned.phases[phase].nbytes == pytest.approx(measured.peaks[phase], rel=0.02), phase


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_plan_of_every_rule_is_within_two_percent_of_a_real_step(kind: str, method: str) -> None:
    check_plan(run_config(method={"kind": method}, optimizer={"kind": kind}, max_steps=20))


@pytest.mark.parametrize("method", PAIRED, ids=lambda method: "-".join(map(str, method.values())))
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_plan_of_rules_of_both_factors_is_within_two_percent_of_a_real_step(
    method: dict[str, Any], checkpointing: bool
) -> None:
    check_plan(run_config(method=method, gradient_checkpointing=checkpointing))
