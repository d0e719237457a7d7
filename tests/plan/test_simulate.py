"""A plan is the real run without its values: the same code on fake tensors gives the same bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from lowmem.config.run import RunConfig
from lowmem.methods.build import build_method
from lowmem.models.checkpointing import set_gradient_checkpointing
from lowmem.models.loss import ModelLoss
from lowmem.plan.fakes import BatchShape, fake_run, with_depth
from lowmem.plan.simulate import Work, evaluate_batch, measure_run, part_label, simulate
from lowmem.plan.tracker import ADAPTER, GRADIENTS, OPTIMIZER, SCRATCH, TEMPORARIES, LiveBytes
from tests.tiny import run_config, tiny_config, tiny_model

BATCH = BatchShape(4, 16)
METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": {"kind": "full"}},
    "full, bf16": {"method": {"kind": "full"}, "dtype": "bf16"},
    "sgd with momentum": {"method": {"kind": "full"}, "optimizer": {"kind": "sgd", "momentum": 0.9}},
    "lora": {"method": {"kind": "lora"}},
    "lora, checkpointing": {"method": {"kind": "lora"}, "gradient_checkpointing": True},
    "full, checkpointing": {"method": {"kind": "full"}, "gradient_checkpointing": True},
    "mezo": {"method": {"kind": "zo", "algorithm": "mezo"}},
    "adanaged": {"method": {"kind": "zo", "step_rule": "parameter_free"}},
    "snr": {"method": {"kind": "zo", "step_rule": "snr"}},
    "fzoo": {"method": {"kind": "zo", "algorithm": "fzoo"}},
    "zo_sign": {"method": {"kind": "zo", "algorithm": "zo_sign"}},
    "zo_muon": {"method": {"kind": "zo", "algorithm": "zo_muon", "top_k": 2}},
    "lozo": {"method": {"kind": "zo", "algorithm": "lozo"}},
    "zo on lora": {"method": {"kind": "zo", "train_adapter": {"kind": "lora"}}},
}


def real_peaks(config: RunConfig, architecture: str, *, steps: int = 1) -> dict[str, int]:
    """Tracked bytes by phase of a real run on a tiny model."""
    dtype = torch.bfloat16 if config.dtype == "bf16" else torch.float32
    model = tiny_model(architecture, dtype=dtype)
    model.config.use_cache = False
    tracker = LiveBytes(vocabulary=model.config.vocab_size)
    tracker.track_module(model)
    with tracker, tracker.phase("attach"):
        method = build_method(config, model)
    set_gradient_checkpointing(model, config.gradient_checkpointing)
    with tracker:
        batch, other = BATCH.batch(), BATCH.batch()
        loss = ModelLoss(model, chunk_tokens=config.loss_chunk_tokens)
        measure_run(
            method, model, loss, [batch], tracker=tracker, evaluate=lambda: evaluate_batch(loss, other), steps=steps
        )
    return {name: nbytes for name, nbytes in tracker.peaks.items() if name != "outside"}


def planned_peaks(config: RunConfig, architecture: str) -> dict[str, int]:
    places = simulate(config, tiny_config(architecture), Work(BATCH, BATCH)).places
    worst: dict[str, int] = {}
    for (phase, _), peak in places.items():
        worst[phase] = max(worst.get(phase, 0), peak.nbytes)
    worst.pop("outside", None)
    worst.pop("load")  # measured in the test of loading
    return worst


@pytest.mark.parametrize("keys", METHODS.values(), ids=METHODS.keys())
@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_the_plan_is_what_the_real_run_takes(architecture: str, keys: dict[str, Any]) -> None:
    config = run_config(**keys)
    real, planned = real_peaks(config, architecture), planned_peaks(config, architecture)
    assert planned.keys() == real.keys()
    for phase, nbytes in real.items():
        assert planned[phase] == pytest.approx(nbytes, rel=0.02), phase
    assert max(planned.values()) == pytest.approx(max(real.values()), rel=0.005)


@pytest.mark.parametrize("name", ["full", "lora", "adanaged"])
def test_one_step_shows_what_two_steps_take(name: str) -> None:
    config = run_config(**METHODS[name])
    one, two = real_peaks(config, "llama"), real_peaks(config, "llama", steps=2)
    assert max(one.values()) == pytest.approx(max(two.values()), rel=0.001)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("method", [{"kind": "lora"}, {"kind": "zo", "train_adapter": {"kind": "lora"}}])
def test_a_quantized_base_is_plannable_and_smaller(method: dict[str, Any], quantization: str) -> None:
    shape = tiny_config("llama", hidden_size=256, intermediate_size=512)
    plain = simulate(run_config(method=method), shape, Work(BATCH))
    small = simulate(run_config(method=method, quantization={"kind": quantization}), shape, Work(BATCH))
    assert small.resident < 0.5 * plain.resident
    assert small.trainable == plain.trainable
    assert small.parameters == plain.parameters


def test_quantized_bytes_equal_those_of_bitsandbytes() -> None:
    import bitsandbytes as bnb

    from lowmem.plan.tracker import quantization_statistics

    layer = bnb.nn.Linear4bit(256, 512, bias=False, compress_statistics=True, quant_type="nf4").to("cpu")
    shape = tiny_config("llama", hidden_size=256, intermediate_size=512)
    config = run_config(quantization={"kind": "nf4"})
    model = fake_run(config, shape, LiveBytes()).model
    twin = next(m for m in model.modules() if isinstance(m, bnb.nn.Linear4bit) and m.out_features == 512)
    assert twin.weight.nbytes == layer.weight.nbytes

    def sizes(module: torch.nn.Module) -> list[int]:
        once = {t.untyped_storage()._cdata: t.nbytes for t in quantization_statistics(module)}
        return sorted(once.values())

    assert sizes(twin) == sizes(layer)


def test_components_are_told_apart() -> None:
    lora = simulate(run_config(), tiny_config("llama"), Work(BATCH)).places
    update = lora["update", ""].components
    assert update[ADAPTER] == update[GRADIENTS] == update[OPTIMIZER] // 2
    zo = simulate(run_config(method={"kind": "zo"}), tiny_config("llama"), Work(BATCH)).places
    assert any(SCRATCH in peak.components for (phase, _), peak in zo.items() if phase == "forward")


def test_pissa_and_other_initialisations_are_plannable() -> None:
    plain, pissa = (
        simulate(run_config(method={"kind": "lora", "init_lora_weights": name}), tiny_config("llama"), Work(BATCH))
        for name in ("default", "pissa")
    )
    assert plain.resident == pissa.resident


def test_classification_tasks_need_the_head_at_one_position() -> None:
    config = run_config(method={"kind": "zo"})
    shape = tiny_config("llama", vocab_size=20000)
    tokens = simulate(config, shape, Work(BatchShape(8, 64))).places
    task = simulate(config, shape, Work(BatchShape(8, 64, options=2))).places
    assert task["forward", "head"].nbytes < tokens["forward", "head"].nbytes


@pytest.mark.parametrize("keys", METHODS.values(), ids=METHODS.keys())
def test_a_plan_builds_no_graph_on_fake_cuda(keys: dict[str, Any]) -> None:
    run = fake_run(run_config(**keys), tiny_config("qwen3"), LiveBytes())
    tensors = [*run.model.parameters(), *run.model.buffers(), *run.method.trainable.values()]
    assert {t.device.type for t in tensors} == {"cpu"}
    assert all(isinstance(t.data, FakeTensor) for t in tensors)


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3", "phi", "cohere"])
def test_architectures_are_plannable_without_a_line_of_their_own(architecture: str) -> None:
    config = run_config(gradient_checkpointing=True)
    assert planned_peaks(config, architecture)["backward"] == pytest.approx(
        real_peaks(config, architecture)["backward"], rel=0.02
    )


def test_parts_are_counted_from_the_nearer_end() -> None:
    assert [part_label(i, 4) for i in range(4)] == ["first+0", "first+1", "last-1", "last-0"]
    assert [part_label(i, 3) for i in range(3)] == ["first+0", "last-1", "last-0"]


def test_a_shorter_model_keeps_its_kinds_of_layers() -> None:
    short = with_depth(tiny_config("gemma3", num_hidden_layers=6), 3)
    assert short.num_hidden_layers == len(short.layer_types) == 3


def test_loading_holds_the_weights_and_of_a_quantized_base_one_matrix_in_16_or_32_bits() -> None:
    shape = tiny_config("llama", hidden_size=256, intermediate_size=512)
    plain, small = (
        simulate(run_config(quantization={"kind": kind}), shape, Work(BATCH)).places["load", ""]
        for kind in ("none", "nf4")
    )
    assert TEMPORARIES not in plain.components
    assert small.components[TEMPORARIES] == 256 * 512 * 4
    assert small.nbytes < 0.4 * plain.nbytes
