"""What a `method` section admits."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from lowmem.config.method import LorsumMethod
from lowmem.config.run import LORA_MUON_LEARNING_RATE, LORSUM_LEARNING_RATE
from tests.tiny import run_config


def test_sweeps_belong_to_gauss_seidel() -> None:
    assert LorsumMethod(mode="gauss_seidel", sweeps=3).sweeps == 3
    with pytest.raises(ValidationError, match="sweeps: belongs to mode: gauss_seidel; mode: jacobi makes a single one"):
        LorsumMethod(sweeps=3)


@pytest.mark.parametrize("kind", ["lorsum", "lora_muon"])
def test_methods_with_their_own_rule_refuse_an_optimizer(kind: str) -> None:
    with pytest.raises(ValidationError, match=f"optimizer: method.kind: {kind} has its own update rule"):
        run_config(method={"kind": kind}, optimizer={"kind": "sgd"})


def test_methods_with_their_own_rule_have_learning_rates_of_their_own() -> None:
    assert run_config(method={"kind": "lorsum"}).peak_learning_rate == LORSUM_LEARNING_RATE
    assert run_config(method={"kind": "lora_muon"}).peak_learning_rate == LORA_MUON_LEARNING_RATE
    assert run_config(method={"kind": "lorsum"}, learning_rate=0.7).peak_learning_rate == 0.7


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"method": {"kind": "full", "update": "in_backward"}}, "method.update: in_backward uses them before"),
        ({"method": {"kind": "gum"}}, "method.kind: gum needs whole weights or gradients in every process"),
        ({"method": {"kind": "zo"}}, "method.kind: zo needs whole weights or gradients in every process"),
        ({"method": {"kind": "full"}, "optimizer": {"kind": "muon"}}, "optimizer.kind: muon looks at whole matrices"),
        ({"quantization": {"kind": "nf4"}}, "quantization.kind: nf4 stores codes that cannot be cut by rows"),
    ],
)
def test_what_cannot_be_cut_over_processes_is_refused_by_name(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=f"fsdp: .*{text}"):
        run_config(**keys, fsdp=True)


@pytest.mark.parametrize("kind", ["full", "lora", "lorsum", "lora_muon"])
def test_what_can_be_cut_is_admitted(kind: str) -> None:
    assert run_config(method={"kind": kind}, fsdp=True).fsdp
