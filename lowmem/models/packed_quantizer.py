"""Packed models for transformers: `from_pretrained` fills empty packed layers, `save_pretrained` writes them.

`config.json` holds `quantization_config` {"quant_method": "lowmem", "format_version", "layers": headers by name}; the
tensors are those of the packed layers (`lowmem.quant.linear`) beside the model's other ones, and the metadata of each
safetensors file holds the sha256 of every tensor of the model. transformers is imported by `register` alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lowmem.errors import FormatError
from lowmem.quant.codec import FORMAT_VERSION
from lowmem.quant.format import digest
from lowmem.quant.linear import TiedHead
from lowmem.quant.modules import TIED, Headers, headers, packed_layers, put_shells

if TYPE_CHECKING:
    from transformers import PretrainedConfig

METHOD = "lowmem"
DIGESTS = "lowmem_digests"
"""Key of the files' metadata."""


def packed_headers(config: PretrainedConfig) -> Headers | None:
    """The packed layers that a model's config speaks of; None for a model that is not packed.

    Raises `FormatError` for another version of the format.
    """
    asked = getattr(config, "quantization_config", None)
    plain: dict[str, Any] = asked if isinstance(asked, dict) else asked.to_dict() if asked is not None else {}
    if plain.get("quant_method") != METHOD:
        return None
    if plain.get("format_version") != FORMAT_VERSION:
        raise FormatError(
            f"the model is of format version {plain.get('format_version')}; this release reads version "
            f"{FORMAT_VERSION}: quantize the original again"
        )
    layers: Headers | None = plain.get("layers")
    if not layers:
        raise FormatError("quantization_config names no layers: config.json is damaged")
    return layers


def put_packed_layers(model: nn.Module, wanted: Headers, *, partial: bool = False) -> None:
    """`model`, on the meta device, has the packed layers of `wanted`, and none of them is tied any more."""
    put_shells(model, wanted, partial=partial)
    if any(header["kind"] == TIED for header in wanted.values()):
        forget_ties(model)


def forget_ties(model: nn.Module) -> None:
    """transformers no longer ties parameters that are gone."""
    for module in model.modules():
        if hasattr(module, "all_tied_weights_keys"):
            of_transformers: Any = module
            of_transformers._tied_weights_keys = {}
            of_transformers.all_tied_weights_keys = {}


def restore_ties(model: nn.Module) -> None:
    """transformers ties what the architecture ties, as before `forget_ties`."""
    for module in model.modules():
        if module.__dict__.pop("_tied_weights_keys", None) is not None:
            of_transformers: Any = module
            of_transformers.all_tied_weights_keys = of_transformers.get_expanded_tied_weights_keys(all_submodels=True)


def check_digests(files: Sequence[Path], needed: Iterable[str] = ()) -> None:
    """Raises `FormatError` naming the first tensor that is damaged, or missing of the `needed` and the recorded ones.

    Files that another tool wrote again have no digests left: only their tensors' names are looked at.
    """
    from safetensors import SafetensorError, safe_open

    found: set[str] = set()
    wanted: dict[str, str] = {}
    for path in files:
        try:
            with safe_open(str(path), framework="pt") as file:
                wanted |= json.loads((file.metadata() or {}).get(DIGESTS, "{}"))
                for name in file.keys():  # noqa: SIM118
                    found.add(name)
                    if name in wanted and digest(file.get_tensor(name)) != wanted[name]:
                        raise FormatError(f"{path}: tensor {name!r} is damaged; get the file again, or quantize again")
        except SafetensorError as error:
            raise FormatError(f"{path} is damaged or truncated ({error}); get or write it again") from error
    if missing := sorted({*wanted, *needed} - found):
        raise FormatError(f"{files[0].parent} lacks tensor {missing[0]!r}: a file is missing or of another model")


@cache
def register() -> type[Any]:
    """transformers reads and writes packed models from here on; the class of their quantization config."""
    from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

    @register_quantization_config(METHOD)
    class PackedConfig(QuantizationConfigMixin):  # type: ignore[misc]
        """`layers`: headers by name (`lowmem.quant.modules`)."""

        def __init__(
            self,
            quant_method: str = METHOD,
            format_version: int = FORMAT_VERSION,
            layers: Headers | None = None,
            **others: Any,
        ) -> None:
            self.quant_method: Any = quant_method
            self.format_version = format_version
            self.layers = layers or {}
            self.__dict__.update(others)

    @register_quantizer(METHOD)
    class PackedQuantizer(HfQuantizer):  # type: ignore[misc]
        """Only loads what is packed already: `lowmem quantize` does the packing."""

        requires_calibration = True

        def _process_model_before_weight_loading(
            self, model: Any, checkpoint_files: Sequence[str] | None = None, **others: Any
        ) -> None:
            wanted = packed_headers(model.config)
            assert wanted is not None, "transformers chose this quantizer by the config"
            put_packed_layers(model, wanted)
            files = [Path(file) for file in checkpoint_files or () if str(file).endswith(".safetensors")]
            check_digests(
                files, [f"{name}.{part}" for name, layer in packed_layers(model).items() for part in layer.state_dict()]
            )

        def get_state_dict_and_metadata(self, model: Any) -> tuple[None, dict[str, str]]:
            tensors = model.state_dict()
            kept = sorted(tensors.keys() - model.all_tied_weights_keys.keys())  # a plain tied head is written once
            return None, {DIGESTS: json.dumps({name: digest(tensors[name]) for name in kept})}

        def is_serializable(self) -> bool:
            return True

        @property
        def is_trainable(self) -> bool:
            return True

        def _dequantize(self, model: Any, dtype: Any = None) -> Any:
            from lowmem.models.packed_folder import unpack_modules

            unpack_modules(model)
            restore_ties(model)
            return model.to(dtype)

    PackedConfig.quantizer = PackedQuantizer
    return PackedConfig


def attach(model: Any) -> None:
    """A model whose layers were packed in place is to transformers what one loaded from a folder is."""
    config = register()
    quantization = config(layers=headers(model))
    model.config.quantization_config = quantization
    model.hf_quantizer = config.quantizer(quantization, pre_quantized=True)
    model.is_quantized, model.quantization_method = True, METHOD
    if any(isinstance(module, TiedHead) for module in model.modules()):
        forget_ties(model)
