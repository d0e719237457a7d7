"""Full finetuning: every weight is trained by back-propagation.

Bytes per parameter beyond the weight: its gradient in the weight's dtype and the rule's state (8 for AdamW). bf16
weights are updated by stochastic rounding, without an fp32 master copy.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def unfreeze(model: PreTrainedModel) -> None:
    """Every floating-point parameter of `model` requires a gradient."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())


def export_model(model: PreTrainedModel, folder: Path) -> None:
    """The whole model as a transformers folder (safetensors shards and config)."""
    model.save_pretrained(str(folder))
