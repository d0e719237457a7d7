"""Recomputed activations: the same gradients from less memory, also below frozen weights."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from lowmem.errors import ConfigError
from lowmem.models.checkpointing import set_gradient_checkpointing
from tests.models.tiny import tiny_model

# peft 0.21 reads it while it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

IDS = torch.arange(10, 42).view(2, 16)


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    logits = model(input_ids=IDS, use_cache=False).logits
    logits.float().logsumexp(-1).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def saved_bytes(model: PreTrainedModel) -> int:
    """Bytes that autograd keeps between forward and backward."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=IDS, use_cache=False).logits.sum()
    return sum(kept.values())


def without_dropout(family: str) -> PreTrainedModel:
    model = tiny_model(family)
    for module in model.modules():
        for rate in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


@pytest.mark.parametrize("family", ["opt", "llama", "qwen3", "gpt2"])
def test_checkpointing_keeps_gradients_and_saves_memory(family: str) -> None:
    model = without_dropout(family)
    plain, plain_bytes = gradients(model), saved_bytes(model)
    set_gradient_checkpointing(model, True)
    recomputed, less_bytes = gradients(model), saved_bytes(model)
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)
    assert less_bytes < plain_bytes
    set_gradient_checkpointing(model, False)
    assert saved_bytes(model) == plain_bytes


def test_adapters_in_a_frozen_base_get_their_gradients() -> None:
    base = without_dropout("llama")
    wrapped = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    plain = gradients(wrapped)
    set_gradient_checkpointing(base, True)
    recomputed = gradients(wrapped)
    assert len(plain) == 2 * 7 * 2
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_the_frozen_embeddings_output_requires_no_gradient() -> None:
    model = without_dropout("llama")
    model.requires_grad_(False)
    set_gradient_checkpointing(model, True)
    assert not model.get_input_embeddings()(IDS).requires_grad


def test_an_architecture_without_it_is_refused() -> None:
    model = tiny_model("llama")
    model.supports_gradient_checkpointing = False
    with pytest.raises(ConfigError, match="gradient_checkpointing: LlamaForCausalLM does not support it"):
        set_gradient_checkpointing(model, True)
