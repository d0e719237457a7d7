"""The scales of a model's quantized layers: few floating-point numbers beside many integer codes.

Three formats have them: bitsandbytes nf4 (a scale per 64 weights) and int8 (one per row), and the project's own
layers. A new format is a case in `scaled_layers`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lowmem.errors import ConfigError, FormatError
from lowmem.models.names import canonical_name
from lowmem.models.resolve import SCALES_FILE
from lowmem.quant.linear import QuantEmbedding, QuantLinear, TiedHead


@dataclass(frozen=True)
class Scaled:
    """One layer: `scales` multiply what `codes` stand for; `put` makes its forward read other scales.

    The tensors are the layer's own.
    """

    name: str
    scales: Tensor
    codes: tuple[Tensor, ...]
    put: Callable[[Any], None]


def scaled_layers(model: nn.Module) -> dict[nn.Module, Scaled]:
    """Every layer of `model` that has scales, in the order of its modules. Empty where nothing is quantized.

    From here on bitsandbytes keeps the layout of its codes. Raises `ConfigError` for nested scales, which are codes.
    """
    found: dict[nn.Module, Scaled] = {}
    shared = {id(module.embedding) for module in model.modules() if isinstance(module, TiedHead)}
    for path, module in model.named_modules():
        name = canonical_name(f"{path}.")
        match module:
            case QuantEmbedding() if id(module) in shared:
                pass  # the head reads the table too, outside the embedding's forward
            case QuantLinear() | QuantEmbedding():
                planes = tuple(buffer for key, buffer in module.named_buffers() if key.startswith("planes"))
                put = partial(module._buffers.__setitem__, "scales")
                found[module] = Scaled(f"{name}scales", module.scales, planes, put)
            case nn.Module() if _of_bitsandbytes(module, "Linear4bit"):
                found[module] = _four_bit(f"{name}weight.absmax", module)
            case nn.Module() if _of_bitsandbytes(module, "Linear8bitLt"):
                found[module] = _eight_bit(f"{name}SCB", module)
            case _:
                pass  # norms, embeddings, the head: they have no codes
    return found


def load_scales(model: nn.Module, folder: Path) -> None:
    """The layers of `model` have the scales that `folder` holds. Raises `FormatError` where they do not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / SCALES_FILE
    try:
        saved = load_file(path)
    except SafetensorError as error:
        raise FormatError(f"{path} is damaged or truncated ({error}); get or write it again") from error
    targets = {layer.name: layer.scales for layer in scaled_layers(model).values()}
    if targets.keys() != saved.keys():
        odd = min(targets.keys() ^ saved.keys())
        raise FormatError(f"{path} does not fit its base model: only one of them has {odd!r}; it is of another run")
    for name, target in targets.items():
        if saved[name].shape != target.shape or saved[name].dtype != target.dtype:
            raise FormatError(
                f"{path} does not fit its base model: {name!r} is {tuple(saved[name].shape)} {saved[name].dtype} there "
                f"and {tuple(target.shape)} {target.dtype} in the model"
            )
    for name, target in targets.items():
        target.data.copy_(saved[name])


def _four_bit(name: str, layer: Any) -> Scaled:
    state = layer.weight.quant_state
    if state.nested:
        raise ConfigError(
            f"method.train: scales: {name!r} is stored as 8-bit codes itself (double quantization), so it cannot be "
            "trained; use quantization: {kind: nf4, double_quant: false}"
        )
    layer.support_avx512bf16_for_cpu = False  # would reorder codes and scales at the first forward without gradients
    return Scaled(name, state.absmax, (layer.weight.data,), partial(setattr, state, "absmax"))


def _eight_bit(name: str, layer: Any) -> Scaled:
    if layer.weight.CB is not None:
        layer.init_8bit_state()  # what its first forward would do
    state = layer.state
    return Scaled(name, state.SCB, (state.CB,), partial(setattr, state, "SCB"))


def _of_bitsandbytes(module: nn.Module, name: str) -> bool:
    """Told by name: where bitsandbytes is not installed, no layer is one of its own."""
    return type(module).__name__ == name and type(module).__module__.startswith("bitsandbytes")
