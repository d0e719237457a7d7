"""Recomputing activations in the backward pass, on or off."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowmem.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def set_gradient_checkpointing(model: PreTrainedModel, enabled: bool) -> None:
    """Every decoder layer of `model` recomputes its activations in backward, or none does.

    Non-reentrant, so adapters in a frozen base get their gradients without the embeddings requiring any; the
    hook that transformers adds for the reentrant kind would carry gradients below the first adapter, and is
    taken off. Layers recompute only in train mode. Raises `ConfigError` where the architecture cannot.
    """
    if not enabled:
        model.activation_checkpointing_disable()
        return
    if not model.supports_gradient_checkpointing:
        raise ConfigError(
            f"gradient_checkpointing: {type(model).__name__} does not support it; "
            "set gradient_checkpointing: false and lower per_device_train_batch_size or max_length"
        )
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    model.disable_input_require_grads()
