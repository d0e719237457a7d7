"""Verbs on packed models: trained on with adapters, planned, exported; refused where nothing can be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lowmem.config.load import load_run
from lowmem.errors import ConfigError
from lowmem.jobs.export import export
from lowmem.jobs.merge import merge
from lowmem.jobs.target import open_target
from lowmem.jobs.train import train
from lowmem.models.load import load_config, load_model
from lowmem.models.source import ModelSource
from lowmem.plan.devices import parse_device
from lowmem.plan.fakes import BatchShape
from lowmem.plan.plan import plan_run
from lowmem.plan.simulate import Work, measure_run, simulate
from lowmem.plan.tracker import LiveBytes
from tests.jobs.test_train import write_config
from tests.models.packed import save_tiny_packed
from tests.tiny import run_config

IDS = torch.arange(2, 98).reshape(2, 48)
ON_PACKED: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", "lora_r": 4},
    "lorsum": {"kind": "lorsum", "lora_r": 4},
    "zo on an adapter": {"kind": "zo", "algorithm": "mezo", "train_adapter": {"lora_r": 4}},
    "scales": {"kind": "zo", "algorithm": "mezo", "train": "scales"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "model"
    save_tiny_packed(folder, kind="e8")
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


def run_on(folder: Path, where: Path, method: dict[str, Any], **changes: Any) -> Path:
    settings = {"max_steps": 3, "save_steps": None, "eval_steps": None, "method": method}
    train(load_run(write_config(where, folder, **settings | changes)).config, sink=lambda event: None)
    return where / "run"


@pytest.mark.parametrize("name", ON_PACKED)
def test_a_run_on_packed_weights_is_opened_again_as_it_was_trained(name: str, folder: Path, tmp_path: Path) -> None:
    run = run_on(folder, tmp_path, ON_PACKED[name], learning_rate=3e-2)
    base = open_target(str(folder), sink=lambda event: None, dtype="fp32").loaded.model
    trained = open_target(str(run), sink=lambda event: None).loaded.model
    assert not torch.equal(logits(trained), logits(base))
    before, after = base.state_dict(), trained.state_dict()
    codes = [key for key in before if ".planes" in key]
    assert codes
    for key in codes:
        inside = key if key in after else key.replace(".planes", ".base_layer.planes")
        assert torch.equal(before[key], after[inside]), key


@pytest.mark.parametrize("name", ON_PACKED)
def test_a_step_on_packed_weights_takes_what_the_plan_says(name: str, folder: Path) -> None:
    config = run_config(model=str(folder), dtype="fp32", method=ON_PACKED[name])
    from lowmem.methods.build import build_method
    from lowmem.models.loss import ModelLoss

    model = load_model(ModelSource.from_config(config), device=torch.device("cpu")).model
    tracker = LiveBytes(vocabulary=model.config.vocab_size)
    tracker.track_module(model)
    with tracker, tracker.phase("attach"):
        method = build_method(config, model)
    shape = BatchShape(8, 32)
    with tracker:
        measure_run(method, model, ModelLoss(model, chunk_tokens=64), [shape.batch()], tracker=tracker)
    config = config.model_copy(update={"loss_chunk_tokens": 64})
    places = simulate(config, load_config(ModelSource.from_config(config)), Work(shape)).places
    for phase in ("attach", "forward", "update"):
        planned = max(peak.nbytes for (name, _), peak in places.items() if name == phase)
        assert planned == pytest.approx(tracker.peaks[phase], rel=0.02), phase


def test_a_plan_offers_only_what_packed_weights_can_carry(folder: Path) -> None:
    config = run_config(model=str(folder), dtype="fp32", method={"kind": "auto"})
    plan = plan_run(config, parse_device("cpu"), budget=2**30, cache=None, sink=lambda event: None)
    assert {row.name for row in plan.rows} == {"lora", "zo on lora"}
    scales = run_config(model=str(folder), dtype="fp32", method=ON_PACKED["scales"])
    plan = plan_run(scales, parse_device("cpu"), budget=2**30, cache=None, sink=lambda event: None)
    assert plan.chosen is not None
    assert plan.chosen.name == "zo on the scales"


@pytest.mark.parametrize("method", [{"kind": "full"}, {"kind": "gum"}, {"kind": "zo"}])
def test_what_would_train_the_codes_themselves_is_refused(method: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="packed into 2 to 4 bits"):
        run_on(folder, tmp_path, method, learning_rate=None if method["kind"] == "zo" else 1e-3)


def test_an_adapter_on_packed_weights_is_not_merged(folder: Path, tmp_path: Path) -> None:
    run = run_on(folder, tmp_path, ON_PACKED["lora"])
    with pytest.raises(ConfigError, match="which hold no sums"):
        merge(str(run), tmp_path / "merged", sink=lambda event: None)
    assert not (tmp_path / "merged").exists()


def test_the_export_of_a_packed_model_is_an_ordinary_one(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    export(str(folder), tmp_path / "plain", dtype="fp32", sink=lambda event: said.append(str(event)))
    assert any("what its codes stand for" in text for text in said)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    packed = open_target(str(folder), sink=lambda event: None, dtype="fp32").loaded.model
    torch.testing.assert_close(logits(plain), logits(packed), rtol=1e-4, atol=1e-5)
    assert all(tensor.is_floating_point() for tensor in load_file(tmp_path / "plain" / "model.safetensors").values())
