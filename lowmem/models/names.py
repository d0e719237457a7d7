"""Canonical parameter names: what a checkpoint would call them, whatever wraps the model, ties once."""

from __future__ import annotations

from torch import nn


def canonical_name(name: str) -> str:
    """`name` without the prefixes and suffixes that peft adds around the checkpoint's own name.

    `base_model.model.model.layers.0.q_proj.lora_A.default.weight` -> `model.layers.0.q_proj.lora_A.weight`
    """
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".default.", ".")


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trained parameters by canonical name, sorted; a tied tensor appears once, under its first name.

    Sorted, so that nothing downstream can depend on the order in which modules were registered.
    """
    named = {canonical_name(name): p for name, p in model.named_parameters() if p.requires_grad}
    return dict(sorted(named.items()))
