"""Whole decoders: calibrated on coded outputs, resumable, tied heads coded once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lowmem.errors import CheckpointError, ConfigError
from lowmem.quant.harp import FitOptions
from lowmem.quant.model import decoder_blocks, fingerprint, quantize_blocks, quantize_embeddings
from lowmem.quant.quantize import QuantizedWeight, QuantizeOptions, dequantize, quantize_weight
from lowmem.quant.store import WeightStore
from tests.tiny import tiny_model, tokens

OPTIONS = QuantizeOptions(kind="s4", candidates=("rht",), sweeps=0, fit=FitOptions(steps=4))


def every(name: str) -> QuantizeOptions | None:
    return OPTIONS


def batches() -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": tokens(3, 16, seed=seed)} for seed in range(2)]


def coded(model: nn.Module, folder: Path) -> dict[str, QuantizedWeight]:
    found: dict[str, QuantizedWeight] = {}
    store = WeightStore(folder, "run")
    quantize_blocks(model, batches(), every, store, on_weight=found.__setitem__)
    return found


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3", "opt"])
def test_every_linear_of_every_block_is_coded_and_in_place(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    before = model(**batches()[0]).logits
    found = coded(model, tmp_path)
    root, blocks = decoder_blocks(model)
    linears = {
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name.startswith(root)
    }
    assert set(found) == linears
    assert len(blocks) == 2
    for name, weight in found.items():
        assert torch.equal(model.get_submodule(name).weight, dequantize(weight))
    after = model(**batches()[0]).logits
    assert not torch.equal(before, after)
    assert float((before - after).detach().norm() / before.detach().norm()) < 0.3


def test_a_block_is_calibrated_on_what_coded_blocks_put_out(tmp_path: Path) -> None:
    model, twin = tiny_model("llama"), tiny_model("llama")
    found = coded(model, tmp_path)
    name = "model.layers.1.self_attn.q_proj"
    inputs: list[torch.Tensor] = []
    twin.model.layers[0].load_state_dict(model.model.layers[0].state_dict())
    twin.get_submodule(name).register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.no_grad():
        for batch in batches():
            twin(**batch)
    rows = torch.cat([x.reshape(-1, x.shape[-1]) for x in inputs])
    weight = quantize_weight(twin.get_submodule(name).weight.detach(), rows.T @ rows / len(rows), OPTIONS)
    torch.testing.assert_close(dequantize(weight), dequantize(found[name]))


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, part = tiny_model("llama"), tiny_model("llama")
    coded(whole, tmp_path / "whole")
    coded(tiny_model("llama"), tmp_path / "part")
    (tmp_path / "part" / "block-001.safetensors").unlink()
    coded(part, tmp_path / "part")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), part.parameters(), strict=True))


def test_files_of_another_run_and_damaged_files_are_refused(tmp_path: Path) -> None:
    coded(tiny_model("llama"), tmp_path)
    with pytest.raises(CheckpointError, match="another model or other options"):
        WeightStore(tmp_path, "other").load("block-000")
    path = tmp_path / "block-000.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"tensor 'model\.layers\.0\..*' is damaged"):
        WeightStore(tmp_path, "run").load("block-000")
    path.write_bytes(data[:100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        WeightStore(tmp_path, "run").load("block-000")


def test_a_tied_head_is_coded_once(tmp_path: Path) -> None:
    model = tiny_model("llama")
    found: dict[str, QuantizedWeight] = {}
    for _ in range(2):
        quantize_embeddings(model, "int8", WeightStore(tmp_path, "run"), on_weight=found.__setitem__)
    assert set(found) == {"model.embed_tokens"}
    assert torch.equal(model.lm_head.weight, dequantize(found["model.embed_tokens"]))


def test_the_fingerprint_knows_weights_text_and_options() -> None:
    model = tiny_model("llama")
    seen = {fingerprint(model, batches(), every), fingerprint(model, batches()[:1], every)}
    seen.add(fingerprint(model, batches(), lambda name: None))
    assert fingerprint(model, batches(), every) in seen
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    seen.add(fingerprint(model, batches(), every))
    assert len(seen) == 4


def test_what_has_no_blocks_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no list of blocks"):
        decoder_blocks(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="no batch was given"):
        quantize_blocks(tiny_model("llama"), [], every, WeightStore(tmp_path, "run"))


def test_linears_that_see_no_text_are_named(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.model.layers[0].add_module("unused", nn.Linear(4, 4))
    with pytest.raises(ConfigError, match="unused saw no calibration text"):
        coded(model, tmp_path)


def test_rotations_are_fitted_although_the_model_runs_without_gradients(tmp_path: Path) -> None:
    model = tiny_model("llama")
    options = replace(OPTIONS, kind="s2", candidates=("harp",))
    weights: dict[str, QuantizedWeight] = {}
    quantize_blocks(model, batches(), lambda name: options, WeightStore(tmp_path, "x"), on_weight=weights.__setitem__)
    angles = [angle for weight in weights.values() for angle in weight.right.angles]
    assert any(bool(angle.any()) for angle in angles)


def test_two_workers_code_the_same_bits_as_one(tmp_path: Path) -> None:
    found = []
    for workers in (1, 2):
        weights: dict[str, QuantizedWeight] = {}
        store = WeightStore(tmp_path / str(workers), "x")
        quantize_blocks(tiny_model("llama"), batches(), every, store, on_weight=weights.__setitem__, workers=workers)
        found.append(weights)
    assert list(found[0]) == list(found[1])
    assert all(torch.equal(dequantize(found[0][name]), dequantize(found[1][name])) for name in found[0])
