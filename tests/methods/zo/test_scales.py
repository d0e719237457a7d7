"""QZO: only scales move, codes stay, and a run folder of scales is a model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lowmem.config.quantization import Int8
from lowmem.config.run import RunConfig
from lowmem.errors import ConfigError, FormatError
from lowmem.jobs.merge import merge
from lowmem.jobs.train import train
from lowmem.methods.base import MethodState
from lowmem.methods.build import build_method
from lowmem.models.load import load_model
from lowmem.models.loss import ModelLoss
from lowmem.models.scales import load_scales, scaled_layers
from lowmem.models.source import ModelSource
from lowmem.plan.fakes import BatchShape
from lowmem.plan.ladder import allowed, rungs
from lowmem.plan.simulate import Work, measure_run, simulate
from lowmem.plan.tracker import LiveBytes
from tests.models.tiny import save_tiny
from tests.quantized import packed, quantized
from tests.tiny import lm_batch, run_config, tiny_config, tiny_model

NF4 = {"kind": "nf4", "double_quant": False}
RATES = {"nf4": 1e-3, "int8": 1e-3, "s2": 3e-2}
FORMATS: dict[str, dict[str, Any]] = {
    "nf4": {"quantization": NF4},
    "int8": {"quantization": {"kind": "int8"}},
    "s2": {},
}


@pytest.fixture(autouse=True)
def _quiet_bitsandbytes(caplog: pytest.LogCaptureFixture) -> None:
    """It says for every layer of every forward that int8 products are computed in fp16."""
    caplog.set_level(logging.ERROR, logger="bitsandbytes.autograd._functions")


class Trial:
    def __init__(self, kind: str, **changes: Any) -> None:
        method = {"kind": "zo", "train": "scales", "algorithm": "mezo"} | changes
        self.config = run_config(method=method, learning_rate=RATES[kind], **FORMATS[kind])
        plain = tiny_model()
        self.model = packed(plain) if kind == "s2" else quantized(plain, self.config.quantization)
        self.layers = scaled_layers(self.model)
        self.loss_fn = ModelLoss(self.model)
        self.method = build_method(self.config, self.model)

    def run(self, start: int, stop: int) -> None:
        for step in range(start, stop):
            self.method.step(self.loss_fn, [lm_batch(rows=6)], lr=self.config.peak_learning_rate, step=step)

    def loss(self) -> float:
        with torch.no_grad():
            sums = self.loss_fn(lm_batch(rows=6))
        return float(sums.total / sums.counts.sum())

    def codes(self) -> list[torch.Tensor]:
        return [tensor.clone() for layer in self.layers.values() for tensor in layer.codes]


@pytest.mark.parametrize("kind", FORMATS)
def test_the_loss_falls_and_the_codes_and_all_parameters_stay_bit_identical(kind: str) -> None:
    trial = Trial(kind)
    codes, before = trial.codes(), trial.loss()
    parameters = {name: p.detach().clone() for name, p in trial.model.named_parameters()}
    scales = {name: tensor.detach().clone() for name, tensor in trial.method.trainable.items()}
    trial.run(0, 60)
    assert trial.loss() < before - 0.002
    assert all(torch.equal(now, then) for now, then in zip(trial.codes(), codes, strict=True))
    assert all(torch.equal(p, parameters[name]) for name, p in trial.model.named_parameters())
    assert len(scales) == 14
    assert all(not torch.equal(tensor, scales[name]) for name, tensor in trial.method.trainable.items())


@pytest.mark.parametrize("kind", FORMATS)
def test_layers_read_the_trained_scales_and_probes_leave_no_trace(kind: str) -> None:
    trial = Trial(kind)
    before = {name: tensor.detach().clone() for name, tensor in trial.method.trainable.items()}
    trial.method.step(trial.loss_fn, [lm_batch()], lr=0.0, step=0)
    now = {layer.name: layer.scales for layer in scaled_layers(trial.model).values()}
    assert all(torch.equal(now[name], value) for name, value in before.items())
    plain = trial.loss()
    for scales in trial.method.trainable.values():
        scales.data.mul_(1.5)
    assert trial.loss() != plain


@pytest.mark.parametrize("kind", ["nf4", "s2"])
def test_resume_equals_the_uninterrupted_run(kind: str, tmp_path: Path) -> None:
    straight, first, second = Trial(kind), Trial(kind), Trial(kind)
    straight.run(0, 8)
    first.run(0, 3)
    state = first.method.state()
    save_file({name: tensor.contiguous() for name, tensor in state.tensors.items()}, tmp_path / "t.safetensors")
    second.method.load_state(MethodState(load_file(tmp_path / "t.safetensors"), state.numbers))
    second.run(3, 8)
    for name, tensor in straight.method.trainable.items():
        assert torch.equal(second.method.trainable[name], tensor), name
    assert second.loss() == straight.loss()


@pytest.mark.parametrize("kind", FORMATS)
def test_exported_scales_make_another_base_the_trained_model(kind: str, tmp_path: Path) -> None:
    trial, fresh = Trial(kind), Trial(kind)
    trial.run(0, 5)
    trial.method.export(tmp_path)
    assert fresh.loss() != trial.loss()
    load_scales(fresh.model, tmp_path)
    assert fresh.loss() == trial.loss()


def test_an_export_with_changed_codes_is_refused(tmp_path: Path) -> None:
    trial = Trial("nf4")
    next(iter(trial.layers.values())).codes[0][0] += 1
    with pytest.raises(FormatError, match="integer codes of the quantized base changed"):
        trial.method.export(tmp_path)


def test_scales_of_another_model_are_refused_by_name(tmp_path: Path) -> None:
    trial = Trial("nf4")
    trial.method.export(tmp_path)
    path = tmp_path / "scales.safetensors"
    saved = load_file(path)
    name = min(saved)
    save_file({key: tensor for key, tensor in saved.items() if key != name}, path)
    with pytest.raises(FormatError, match=f"only one of them has '{name}'"):
        load_scales(trial.model, tmp_path)
    save_file(saved | {name: saved[name][:1].clone()}, path)
    with pytest.raises(FormatError, match=f"'{name}' is .1,. torch.float32 there"):
        load_scales(trial.model, tmp_path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(FormatError, match="damaged or truncated"):
        load_scales(trial.model, tmp_path)


def test_a_model_without_scales_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no layer with quantization scales; use quantization"):
        build_method(run_config(method={"kind": "zo", "train": "scales"}), tiny_model())


def test_nested_scales_are_refused_by_the_config_and_by_name() -> None:
    with pytest.raises(ValueError, match="set double_quant: false"):
        run_config(method={"kind": "zo", "train": "scales"}, quantization={"kind": "nf4"})
    nested = run_config(quantization={"kind": "nf4"}).quantization
    with pytest.raises(ConfigError, match=r"q_proj\.weight\.absmax' is stored as 8-bit codes itself"):
        scaled_layers(quantized(tiny_model(), nested))


def test_scales_and_an_adapter_are_not_trained_together() -> None:
    with pytest.raises(ValueError, match="train: scales and train_adapter"):
        run_config(method={"kind": "zo", "train": "scales", "train_adapter": {}}, quantization=NF4)


def test_a_run_folder_of_scales_is_the_trained_model(tmp_path: Path) -> None:
    config = RunConfig.model_validate(
        {
            "model": save_tiny(tmp_path / "base").as_posix(),
            "dtype": "fp32",
            "dataset": [{"format": "procedural", "family": "copy", "size": 16, "data_seed": 0}],
            "quantization": NF4,
            "method": {"kind": "zo", "algorithm": "mezo", "train": "scales"},
            "learning_rate": 1e-3,
            "max_steps": 4,
            "max_length": 64,
            "output_dir": str(tmp_path / "run"),
        }
    )
    train(config, sink=lambda event: None)
    assert [path.name for path in (tmp_path / "run" / "model").glob("*.safetensors")] == ["scales.safetensors"]
    cpu = torch.device("cpu")
    loaded = load_model(ModelSource(str(tmp_path / "run"), dtype="fp32"), device=cpu).model
    base = load_model(ModelSource(config.model, dtype="fp32", quantization=config.quantization), device=cpu).model
    ours, theirs = scaled_layers(loaded), scaled_layers(base)
    saved = load_file(tmp_path / "run" / "model" / "scales.safetensors")
    assert saved.keys() == {layer.name for layer in ours.values()}
    assert all(torch.equal(layer.scales, saved[layer.name]) for layer in ours.values())
    for mine, other in zip(ours.values(), theirs.values(), strict=True):
        assert not torch.equal(mine.scales, other.scales)
        assert all(torch.equal(a, b) for a, b in zip(mine.codes, other.codes, strict=True))
    with pytest.raises(ConfigError, match="holds the scales of a nf4 base"):
        load_model(ModelSource(str(tmp_path / "run"), quantization=Int8()), device=cpu)
    with pytest.raises(ConfigError, match="no run folder with an adapter"):
        merge(str(tmp_path / "run"), tmp_path / "merged", sink=lambda event: None)


@pytest.mark.parametrize("algorithm", ["mezo", "adanaged"])
def test_the_plan_is_what_the_real_run_takes(algorithm: str) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 512}
    config = run_config(method={"kind": "zo", "train": "scales", "algorithm": algorithm}, quantization=NF4)
    model = quantized(tiny_model(**sizes), config.quantization)
    model.config.use_cache = False
    batch = BatchShape(4, 16)
    tracker = LiveBytes(vocabulary=model.config.vocab_size)
    tracker.track_module(model)
    with tracker, tracker.phase("attach"):
        method = build_method(config, model)
    with tracker:
        loss = ModelLoss(model, chunk_tokens=config.loss_chunk_tokens)
        resident = measure_run(method, model, loss, [batch.batch()], tracker=tracker)
    planned = simulate(config, tiny_config("llama", **sizes), Work(batch))
    worst: dict[str, int] = {}
    for (phase, _), peak in planned.places.items():
        worst[phase] = max(worst.get(phase, 0), peak.nbytes)
    for phase in ("attach", "forward", "update", "save"):
        assert worst[phase] == pytest.approx(tracker.peaks[phase], rel=0.02), phase
    assert planned.resident == pytest.approx(resident, rel=0.02)
    assert planned.trainable == sum(tensor.numel() for tensor in method.trainable.values())


def test_the_planner_offers_scales_where_they_are_asked_for() -> None:
    asked = run_config(method={"kind": "zo", "train": "scales"}, quantization=NF4)
    assert [rung.name for rung in rungs(asked) if allowed(asked, rung)] == ["zo on the scales of nf4"]
    assert not any("scales" in rung.name for rung in rungs(run_config(method={"kind": "zo"})))
