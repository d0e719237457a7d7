from __future__ import annotations

from lowmem.config.method import LoraMethod
from lowmem.methods.lowrank.lora import attach_lora
from lowmem.models.names import canonical_name, trainable_parameters
from tests.tiny import tiny_model


def test_adapter_prefixes_and_suffixes_are_resolved() -> None:
    wrapped = "base_model.model.model.layers.0.self_attn.q_proj"
    assert canonical_name(f"{wrapped}.lora_A.default.weight") == "model.layers.0.self_attn.q_proj.lora_A.weight"
    assert canonical_name(f"{wrapped}.base_layer.weight") == "model.layers.0.self_attn.q_proj.weight"
    assert canonical_name("model.norm.weight") == "model.norm.weight"


def test_names_are_the_same_inside_and_outside_of_the_wrapper() -> None:
    plain = set(dict(tiny_model().named_parameters()))
    model = tiny_model()
    attach_lora(model, LoraMethod(), seed=0)
    inside = {canonical_name(name) for name, _ in model.named_parameters() if "lora" not in name}
    assert inside == plain
    assert all("lora_" in name and "default" not in name for name in trainable_parameters(model))


def test_tied_weights_appear_once() -> None:
    names = trainable_parameters(tiny_model(tie_word_embeddings=True))
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    assert "lm_head.weight" in trainable_parameters(tiny_model(tie_word_embeddings=False))
