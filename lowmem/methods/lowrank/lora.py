"""LoRA (Hu et al., arXiv 2106.09685) through peft: y = W x + (alpha / r) B A x with W frozen.

Defaults follow what "LoRA without regret" found: every linear layer gets an adapter and the learning rate is about
ten times that of full finetuning. Adapters are kept in fp32 whatever the base's dtype. Bytes beyond the base, per
adapted m x n layer: 4 r (m + n) weights, as much again for gradients and the rule's state (8 r (m + n) for AdamW).
The result is peft's own format and loads in plain `peft.PeftModel.from_pretrained`.

PiSSA (Meng et al., arXiv 2404.02948) starts with the largest singular vectors of W in B A and takes them out of W. What
is exported belongs to the W of before: the difference B A - B0 A0, an ordinary adapter of rank 2 r, for which the
start is kept, 4 r (m + n) bytes more.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowmem.config.method import AdapterMethod, LoraMethod
from lowmem.errors import ConfigError
from lowmem.kernels.reference import stream_key
from lowmem.methods.lowrank.pair import ADAPTER
from lowmem.models.names import trainable_parameters
from lowmem.models.packed_lora import register_packed_layers
from lowmem.quant.modules import packed_layers

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def attach_lora(model: PreTrainedModel, config: AdapterMethod, *, seed: int) -> PeftModel:
    """`model` wrapped in place by peft, base frozen, adapters initialised from `seed` and their names alone."""
    from peft import LoraConfig, get_peft_model

    if config.init_lora_weights == "pissa":
        _check_pissa(model)
    targets: Any = config.lora_target_modules
    peft_config = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_rslora=config.use_rslora,
        use_dora=isinstance(config, LoraMethod) and config.use_dora,
        init_lora_weights="pissa" if config.init_lora_weights == "pissa" else True,
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),  # GPT-2 stores W^T
        task_type="CAUSAL_LM",
    )
    register_packed_layers(peft_config, model)
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


def adapter_exporter(model: PeftModel, config: AdapterMethod) -> Callable[[Path], None]:
    """What writes the adapter of `model` as trained on the base that was loaded, in peft's format."""
    if config.init_lora_weights == "pissa":
        return partial(export_difference, model, _adapter_tensors(model))
    return partial(export_adapter, model)


def export_adapter(model: PeftModel, folder: Path) -> None:
    """The adapter in peft's format. The base is named in its config, not copied."""
    model.save_pretrained(str(folder), save_embedding_layers=False)


def export_difference(model: PeftModel, start: dict[str, Tensor], folder: Path) -> None:
    """An adapter of rank 2 r that adds scale (B A - B0 A0) to the base; `start` holds A0 and B0 by peft's names."""
    from safetensors.torch import save_file

    joined = {}
    for name, tensor in _adapter_tensors(model).items():
        first = "lora_A" in name
        joined[name] = torch.cat([tensor, start[name] if first else -start[name]], dim=0 if first else 1).cpu()
    config = copy.deepcopy(model.peft_config[ADAPTER])
    scale = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
    config.r, config.lora_alpha, config.use_rslora = 2 * config.r, 2 * config.r * scale, False
    config.init_lora_weights, config.inference_mode = True, True
    config.base_model_name_or_path = model.base_model.model.name_or_path or None
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    save_file(joined, str(folder / "adapter_model.safetensors"))


def _adapter_tensors(model: PeftModel) -> dict[str, Tensor]:
    """Copies of the adapter's factors under the names of peft's files."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def _check_pissa(model: PreTrainedModel) -> None:
    codes = (name for name, p in model.named_parameters() if not p.is_floating_point())
    quantized = next(chain(codes, packed_layers(model)), None)
    if quantized is not None:
        raise ConfigError(
            f"method.init_lora_weights: pissa decomposes the base's weights, but {quantized} is quantized; "
            "use init_lora_weights: default, or a base that is not quantized"
        )


def _initialise(model: PeftModel, seed: int) -> None:
    """A uniform in +-1/sqrt(n) (peft's law), B zero; each from its own name, so order and device do not matter."""
    for name, parameter in trainable_parameters(model).items():
        if ".lora_A." in name and not parameter.is_meta:
            generator = torch.Generator().manual_seed(stream_key(seed, 0, 0, name, "init") >> 1)
            bound = 1 / math.sqrt(parameter.shape[1])
            values = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
            parameter.data.copy_(values)
