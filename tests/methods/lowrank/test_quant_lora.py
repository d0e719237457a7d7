"""LoRA on a model whose linear layers are packed: trains, saves, reloads; refuses what packed weights cannot do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from lowmem.config.method import LoraMethod
from lowmem.errors import ConfigError
from lowmem.hf import load_adapter, register_packed_layers
from lowmem.methods.fully_sharded import shard_
from lowmem.methods.lowrank.lora import attach_lora, export_adapter
from lowmem.methods.prepared import Prepared
from lowmem.quant.linear import QuantLinear
from lowmem.quant.rotation import random_hadamard
from tests.quant.packed import random_packed
from tests.tiny import run_config, tiny_model

IDS = torch.tensor([[5, 9, 11, 3, 7, 40]])


def packed_model() -> Any:
    """Every linear layer but the head holds random codes; the same ones at every call."""
    model = tiny_model("llama").eval()
    for parent in list(model.model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                m, n = child.weight.shape
                packed = replace(random_packed("s2", m, n), gain=2.0**-6)
                setattr(parent, name, QuantLinear(packed, random_hadamard(n, 1), random_hadamard(m, 2)))
    return model.requires_grad_(False)


def trained() -> Any:
    wrapped = attach_lora(packed_model(), LoraMethod(lora_r=4), seed=0)
    optimizer = torch.optim.SGD((p for p in wrapped.parameters() if p.requires_grad), lr=0.05)
    losses = []
    for _ in range(8):
        loss = wrapped(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    return wrapped


def test_an_adapter_trains_on_packed_layers_and_reloads(tmp_path: Path) -> None:
    wrapped = trained()
    logits = wrapped(input_ids=IDS).logits
    export_adapter(wrapped, tmp_path)
    again = load_adapter(packed_model(), tmp_path)
    assert torch.equal(again(input_ids=IDS).logits, logits)
    with again.disable_adapter():
        assert torch.equal(again(input_ids=IDS).logits, packed_model()(input_ids=IDS).logits)


def test_all_linear_finds_every_packed_layer_and_trains_adapters_only() -> None:
    wrapped = attach_lora(packed_model(), LoraMethod(lora_r=2), seed=0)
    adapted = [name for name, p in wrapped.named_parameters() if p.requires_grad]
    assert len(adapted) == 2 * 2 * 7
    assert all("lora_" in name for name in adapted)


def test_merging_and_dora_are_refused() -> None:
    wrapped = attach_lora(packed_model(), LoraMethod(lora_r=2), seed=0)
    with pytest.raises(ConfigError, match="an adapter cannot be merged into packed weights"):
        wrapped.merge_and_unload()
    with pytest.raises(ConfigError, match="use_dora needs the norms of the base's weights, which are packed here"):
        attach_lora(packed_model(), LoraMethod(lora_r=2, use_dora=True), seed=0)
    with pytest.raises(ConfigError, match=r"pissa decomposes the base's weights, but .*q_proj is quantized"):
        attach_lora(packed_model(), LoraMethod(lora_r=2, init_lora_weights="pissa"), seed=0)


def test_codes_are_not_cut_over_processes() -> None:
    two = SimpleNamespace(rank=0, world=2, sum_=lambda tensor: None)
    with pytest.raises(ConfigError, match="codes cannot be cut by rows"):
        shard_(run_config(method={"kind": "lora"}), packed_model(), Prepared("", lambda folder: None), two)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # inside peft 0.21
def test_plain_peft_adapts_packed_layers_that_it_was_told_of(tmp_path: Path) -> None:
    config = register_packed_layers(LoraConfig(r=2, target_modules=["q_proj"]), packed_model())
    wrapped: Any = get_peft_model(packed_model(), config)
    wrapped.save_pretrained(str(tmp_path))
    again = load_adapter(packed_model(), tmp_path)
    assert torch.equal(again(input_ids=IDS).logits, wrapped(input_ids=IDS).logits)
