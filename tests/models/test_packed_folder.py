"""Packed models in folders: read by transformers, written again, refused when damaged, ordinary again on demand."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

import lowmem.hf
from lowmem.config.quantization import Nf4
from lowmem.errors import ConfigError, FormatError
from lowmem.models.load import load_model, meta_model
from lowmem.models.packed_folder import is_packed, read_record, save_packed, unpack_modules
from lowmem.models.packed_quantizer import DIGESTS, check_digests, packed_headers
from lowmem.models.source import ModelSource
from lowmem.quant.format import digest
from lowmem.quant.linear import QuantEmbedding, QuantLinear, TiedHead
from lowmem.quant.modules import headers, pack_modules, packed_weights, put_shells
from tests.models.packed import coded, save_tiny_packed
from tests.models.tiny import tiny_model, tiny_tokenizer

IDS = torch.arange(2, 98).reshape(2, 48)
"""Enough rows that products are made without rounding activations."""
FAMILIES = ["llama", "qwen3", "opt", "mistral"]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


def contents(folder: Path) -> dict[str, Any]:
    """What a file says; the order of its two pieces of metadata is safetensors' own and differs from run to run."""
    with safe_open(str(folder / "model.safetensors"), framework="pt") as file:
        tensors = {name: digest(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        return {"tensors": tensors, "metadata": file.metadata()}


def load(folder: Path, **changes: Any) -> Any:
    source = ModelSource(str(folder), **({"dtype": "fp32"} | changes))
    return load_model(source, device=torch.device("cpu")).model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "model"
    save_tiny_packed(folder, rotation="harp")
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_model_says_what_its_decoded_weights_say(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    weights = coded(model, tmp_path / "codes", rotation="harp")
    expected = logits(model)
    pack_modules(model, weights)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    left = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Embedding)]
    assert left == (["model.decoder.embed_positions"] if family == "opt" else []), "everything is packed"


@pytest.mark.parametrize("kind", ["s2", "s3", "s4", "e8", "e8r", "nested"])
def test_transformers_reads_and_writes_the_same_bytes(kind: Any, tmp_path: Path) -> None:
    save_tiny_packed(tmp_path / "one", kind=kind)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "one", output_loading_info=True, dtype=torch.float32)
    assert not any(info.values())
    model.save_pretrained(tmp_path / "two")
    one, two = (contents(tmp_path / name) for name in ("one", "two"))
    assert one == two, "every tensor's bytes, and the digests beside them"
    assert one["tensors"].keys() == model.state_dict().keys()
    assert (tmp_path / "one" / "config.json").read_bytes() == (tmp_path / "two" / "config.json").read_bytes()
    assert torch.equal(logits(model), logits(load(tmp_path / "two")))


def test_loading_twice_and_by_both_ways_gives_the_same_model(folder: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(logits(load(folder)), logits(theirs))
    assert isinstance(theirs.lm_head, TiedHead)
    assert theirs.lm_head.embedding is theirs.get_input_embeddings()


def test_codes_keep_their_types_in_any_dtype(folder: Path) -> None:
    model = load(folder, dtype="bf16").to(torch.float16)
    kinds = {
        buffer.dtype for module in model.modules() if isinstance(module, QuantLinear) for buffer in module.buffers()
    }
    assert kinds == {torch.uint8, torch.int8, torch.float16}
    table = model.get_input_embeddings()
    assert isinstance(table, QuantEmbedding)
    assert table.scales.dtype == torch.float16
    assert model.model.norm.weight.dtype == torch.float16


def test_a_model_in_several_files_is_whole_or_refused(folder: Path, tmp_path: Path) -> None:
    model = load(folder)
    model.save_pretrained(tmp_path / "cut", max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(tmp_path / "cut")
    shards = sorted((tmp_path / "cut").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert torch.equal(logits(load(tmp_path / "cut")), logits(model))
    with pytest.raises(FormatError, match="lacks tensor"):
        check_digests(shards[1:])
    shards[0].unlink()
    with pytest.raises(FormatError, match="cannot be read as a model"):
        load(tmp_path / "cut")


def test_importing_it_again_registers_nothing_twice() -> None:
    from lowmem.models.packed_quantizer import register

    assert register() is register()
    importlib.reload(lowmem.hf)
    assert register() is register()


def test_the_record_holds_true_bytes(folder: Path) -> None:
    record, model = read_record(folder), load(folder)
    sizes = record["sizes"]
    assert record["by"] == "test"
    assert sizes["parameters"] == sum(p.numel() for p in tiny_model("qwen3").parameters())
    assert sizes["file_bytes"] == (folder / "model.safetensors").stat().st_size
    layers = [module for module in model.modules() if isinstance(module, QuantLinear)]
    assert sizes["linear_weights"] == sum(layer.in_features * layer.out_features for layer in layers)
    stored = load_file(folder / "model.safetensors")
    own = [tensor.nbytes for name, tensor in stored.items() if ".self_attn." in name or ".mlp." in name]
    norms = [tensor.nbytes for name, tensor in stored.items() if name.endswith(("q_norm.weight", "k_norm.weight"))]
    assert sizes["linear_bytes"] == sum(own) - sum(norms)
    assert sizes["linear_bits"] == 8 * sizes["linear_bytes"] / sizes["linear_weights"]


def test_a_folder_with_a_model_is_not_written_over(folder: Path) -> None:
    with pytest.raises(ConfigError, match="holds a model already"):
        save_packed(tiny_model(), {}, tiny_tokenizer(), folder, record={})


def damaged_copy(folder: Path, target: Path, name: str) -> None:
    """`folder` with one byte of tensor `name` flipped, or without it where `name` begins with a minus."""
    target.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (target / file.name).write_bytes(file.read_bytes())
    with safe_open(str(folder / "model.safetensors"), framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(folder / "model.safetensors")
    if name.startswith("-"):
        del tensors[name[1:]]
    else:
        tensors[name].view(-1).view(torch.uint8)[0] ^= 1
    save_file(tensors, str(target / "model.safetensors"), metadata=metadata)


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.mlp.up_proj.planes0", "model.layers.1.self_attn.q_proj.scales", "model.norm.weight"],
)
def test_a_damaged_tensor_is_refused_by_name(name: str, folder: Path, tmp_path: Path) -> None:
    damaged_copy(folder, tmp_path / "bad", name)
    for read in (load, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(FormatError, match=f"tensor '{name}' is damaged"):
            read(tmp_path / "bad")


def test_a_missing_tensor_and_a_truncated_file_are_refused(folder: Path, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.scales"
    damaged_copy(folder, tmp_path / "bad", f"-{name}")
    with pytest.raises(FormatError, match=f"lacks tensor '{name}'"):
        load(tmp_path / "bad")
    file = tmp_path / "bad" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FormatError, match="damaged or truncated"):
        check_digests([file])


def test_files_of_other_tools_have_no_digests_but_every_tensor(folder: Path, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.scales"
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, str(tmp_path / "model.safetensors"), metadata={"format": "pt"})
    check_digests([tmp_path / "model.safetensors"], tensors)
    del tensors[name]
    save_file(tensors, str(tmp_path / "model.safetensors"), metadata={"format": "pt"})
    with pytest.raises(FormatError, match=f"lacks tensor '{name}'"):
        check_digests([tmp_path / "model.safetensors"], load_file(folder / "model.safetensors"))
    with safe_open(str(folder / "model.safetensors"), framework="pt") as file:
        assert len(json.loads(file.metadata()[DIGESTS])) == len(list(file.keys()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "format version 99"),
        ({"layers": {}}, "names no layers"),
    ],
)
def test_other_versions_and_damaged_configs_are_refused(
    change: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "bad"
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((target / "config.json").read_text())
    config["quantization_config"] |= change
    (target / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match=message):
        load(target)


def test_headers_that_do_not_fit_the_model_are_refused_by_name() -> None:
    model = tiny_model("llama")
    header = {"kind": "s2", "shape": [1, 2], "gain": 1.0, "residual_scale": 0.0, "group_size": 0}
    with pytest.raises(FormatError, match=r"'model.layers.0.mlp.up_proj' is \(1, 2\) in the quantized files"):
        put_shells(model, {"model.layers.0.mlp.up_proj": header})
    with pytest.raises(FormatError, match=r"no layer 'model\.layers\.7"):
        put_shells(model, {"model.layers.7.mlp.up_proj": header})
    put_shells(model, {"model.layers.7.mlp.up_proj": header}, partial=True)
    assert not is_packed(model)
    with pytest.raises(FormatError, match="has no 'shape'"):
        put_shells(model, {"model.layers.0.mlp.up_proj": {"kind": "s2"}})
    with pytest.raises(FormatError, match="which is not packed"):
        put_shells(model, {"lm_head": {"kind": "tied_head", "table": "model.embed_tokens"}})


def test_what_a_packed_layer_cannot_stand_for_is_refused(tmp_path: Path) -> None:
    model = tiny_model("gemma3")
    weights = coded(model, tmp_path)
    with pytest.raises(ConfigError, match="does more than look rows up; leave the embeddings"):
        pack_modules(model, weights)
    some = next(iter(weights.values()))
    for family, name in (("llama", "model.norm"), ("gpt2", "transformer.h.0.attn.c_attn")):
        with pytest.raises(ConfigError, match="only linear layers and embeddings"):
            pack_modules(tiny_model(family), {name: some})
    with pytest.raises(ConfigError, match="no list of blocks with linear layers"):
        coded(tiny_model("gpt2"), tmp_path / "gpt2")
    biased = tiny_model("qwen3")
    biased.lm_head.bias = nn.Parameter(torch.zeros(biased.config.vocab_size))
    with pytest.raises(ConfigError, match="has a bias and shares the embedding's table"):
        pack_modules(biased, {"model.embed_tokens": weights["model.embed_tokens"]})


def test_a_record_is_told_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="was not written by lowmem quantize"):
        read_record(tmp_path)
    (tmp_path / "lowmem.json").write_text("{")
    with pytest.raises(FormatError, match=r"lowmem\.json is damaged"):
        read_record(tmp_path)


def test_a_packed_model_is_not_quantized_again(folder: Path) -> None:
    with pytest.raises(ConfigError, match="packed already by lowmem quantize"):
        load(folder, quantization=Nf4())


@pytest.mark.parametrize("family", ["llama", "qwen3", "opt"])
def test_unpacked_it_is_an_ordinary_model_that_says_the_same(family: str, tmp_path: Path) -> None:
    save_tiny_packed(tmp_path / "model", family)
    model = load(tmp_path / "model")
    expected = logits(model)
    model.dequantize(dtype=torch.float32)
    assert not is_packed(model)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path / "plain")
    again, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values())
    assert torch.equal(logits(again), logits(model))


def test_a_head_of_its_own_is_packed_as_a_layer(tmp_path: Path) -> None:
    model = tiny_model("mistral")
    pack_modules(model, coded(model, tmp_path))
    assert isinstance(model.get_output_embeddings(), QuantLinear)
    unpack_modules(model)
    assert isinstance(model.get_output_embeddings(), nn.Linear)


def test_shapes_are_known_without_weights(folder: Path) -> None:
    model = meta_model(ModelSource(str(folder), dtype="fp32"))
    assert headers(model) == packed_headers(model.config)
    own = sum(p.numel() for p in model.parameters())
    assert own + packed_weights(model) == sum(p.numel() for p in tiny_model("qwen3").parameters())
