"""LoRA (Hu et al., arXiv 2106.09685) through peft: y = W x + (alpha / r) B A x with W frozen.

Defaults follow what "LoRA without regret" found: every linear layer gets an adapter and the learning rate is about
ten times that of full finetuning. Adapters are kept in fp32 whatever the base's dtype. Bytes beyond the base, per
adapted m x n layer: 4 r (m + n) weights, as much again for gradients and the rule's state (8 r (m + n) for AdamW).
Checkpoints are peft's own format and load in plain `peft.PeftModel.from_pretrained`.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lowmem.config.method import LoraMethod
from lowmem.errors import ConfigError
from lowmem.kernels.reference import stream_key
from lowmem.models.names import trainable_parameters

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def attach_lora(model: PreTrainedModel, config: LoraMethod, *, seed: int) -> PeftModel:
    """`model` wrapped in place by peft, base frozen, adapters initialised from `seed` and their names alone."""
    from peft import LoraConfig, get_peft_model

    targets: Any = config.lora_target_modules
    peft_config = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        init_lora_weights="pissa" if config.init_lora_weights == "pissa" else True,
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),  # GPT-2 stores W^T
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        # peft 0.21 reads a property that transformers 5.23 renamed; nothing that a user could act on.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        torch.manual_seed(seed)
        try:
            wrapped = get_peft_model(model, peft_config)
        except ValueError as error:
            raise ConfigError(
                f"method.lora_target_modules: {targets!r} does not fit {type(model).__name__}: {error}"
            ) from error
    if config.init_lora_weights == "default":
        _initialise(wrapped, seed)
    return wrapped


def export_adapter(model: PeftModel, folder: Path) -> None:
    """The adapter in peft's format. The base is named in its config, not copied."""
    model.save_pretrained(str(folder), save_embedding_layers=False)


def _initialise(model: PeftModel, seed: int) -> None:
    """A uniform in +-1/sqrt(n) (peft's law), B zero; each from its own name, so order and device do not matter."""
    for name, parameter in trainable_parameters(model).items():
        if ".lora_A." in name and not parameter.is_meta:
            generator = torch.Generator().manual_seed(stream_key(seed, 0, 0, name, "init") >> 1)
            bound = 1 / math.sqrt(parameter.shape[1])
            values = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
            parameter.data.copy_(values)
