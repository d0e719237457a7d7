"""LoRA on packed layers: peft adapts a `QuantLinear` if its config has been told to, also when an adapter is loaded.

The adapted layer is `base(x) + scaling B A dropout(x)` with the packed base untouched; adapters are in fp32 and follow
the base's device. Merging is refused: the sum has no packed form. peft's registration lives in a config object and
is not saved, hence `load_adapter`.
"""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lowmem.errors import ConfigError
from lowmem.quant.linear import QuantLinear

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel


def register_packed_layers(config: LoraConfig, model: nn.Module) -> LoraConfig:
    """`config`, told how packed layers are adapted; "all-linear", which knows torch's layers only, then names them.

    Returned as it is where `model` has none. Raises `ConfigError` for DoRA, which needs the weight's column norms.
    """
    packed = {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantLinear)}
    if not packed:
        return config
    if config.use_dora:
        raise ConfigError("use_dora needs the norms of the base's weights, which are packed here; use plain LoRA")
    config._register_custom_module({QuantLinear: adapted_layer()})
    if config.target_modules == "all-linear":
        head = _head_name(model, packed)
        config.target_modules = sorted({name for name in packed if name != head})
    return config


def load_adapter(model: PreTrainedModel, folder: Path, *, is_trainable: bool = False) -> PeftModel:
    """`model`, packed or not, with the adapter saved in `folder`."""
    from peft import PeftConfig, PeftModel

    config: Any = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = not is_trainable
    register_packed_layers(config, model)
    with warnings.catch_warnings():
        # peft 0.21 reads a property that transformers 5.23 renamed; nothing that a user could act on.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        return PeftModel.from_pretrained(model, str(folder), config=config, is_trainable=is_trainable)


@cache
def adapted_layer() -> type[nn.Module]:
    """The layer that peft puts around a `QuantLinear`; made at first use, since peft is slow to import."""
    from peft.tuners.lora import LoraLayer

    class QuantLoraLinear(nn.Module, LoraLayer):  # type: ignore[misc]
        base_layer: Any  # peft's attributes, which have no types there
        lora_A: Any
        lora_B: Any
        lora_dropout: Any
        scaling: Any
        update_layer: Any
        active_adapters: Any

        def __init__(
            self, base_layer: QuantLinear, adapter_name: str, config: LoraConfig, r: int, lora_alpha: int, **_: Any
        ) -> None:
            super().__init__()
            with warnings.catch_warnings():
                # peft warns of every type it was told of by a custom module; this one is tested.
                warnings.filterwarnings("ignore", message="Unsupported layer type", category=UserWarning)
                LoraLayer.__init__(self, base_layer)
            self.fan_in_fan_out = False
            self._active_adapter = adapter_name
            self.update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config)

        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            y: Tensor = self.base_layer(x)
            if self.disable_adapters:
                return y
            for name in self.active_adapters:
                if name in self.lora_A:
                    down, up = self.lora_A[name], self.lora_B[name]
                    dropped = self.lora_dropout[name](x.to(down.weight.dtype))
                    y = y + (up(down(dropped)) * self.scaling[name]).to(y.dtype)
            return y

        def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
            raise ConfigError(
                "an adapter cannot be merged into packed weights, which hold no sums; keep it as an adapter, or"
                " merge it into the original model"
            )

    return QuantLoraLinear


def _head_name(model: nn.Module, packed: dict[str, QuantLinear]) -> str | None:
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return next((name for name, layer in packed.items() if layer is head), None)
