"""Full finetuning: every weight is trained by back-propagation.

Bytes per parameter beyond the weight: its gradient in the weight's dtype and the rule's state (8 for AdamW). bf16
weights are updated by stochastic rounding, without an fp32 master copy.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lowmem.errors import ConfigError
from lowmem.models.packed_folder import is_packed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def unfreeze(model: PreTrainedModel) -> None:
    """Every floating-point parameter of `model` requires a gradient. Raises `ConfigError` for a packed model."""
    if is_packed(model):
        raise ConfigError(
            "method: the model's weights are packed into 2 to 4 bits, which cannot be trained themselves; use method: "
            "lora or lorsum, or zo with train_adapter or train: scales"
        )
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())


def export_model(model: PreTrainedModel, folder: Path) -> None:
    """The whole model as a transformers folder (safetensors shards and config)."""
    model.save_pretrained(str(folder))
