"""The folder of a packed model: what transformers writes, and `lowmem.json`, the record of how it was made.

`lowmem.json` holds whatever the caller records beside `sizes` (`Sizes`). A folder appears whole: config.json, which
makes it a model, is moved in last.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lowmem.errors import ConfigError, FormatError
from lowmem.models.packed_quantizer import attach
from lowmem.models.quiet import quiet_transformers
from lowmem.quant.codec import unpack
from lowmem.quant.linear import QuantEmbedding, QuantLinear, TiedHead
from lowmem.quant.modules import pack_modules, packed_layers
from lowmem.quant.quantize import QuantizedWeight

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RECORD = "lowmem.json"
SHARD = "4GB"
"""Largest file, as transformers takes it."""
_LAST = "config.json"


@dataclass(frozen=True)
class Sizes:
    """True bytes. `parameters` counts what the model had before, tied weights once."""

    parameters: int
    linear_weights: int
    linear_bytes: int
    """Codes, scales, signs and angles of the packed linear layers, biases apart."""
    file_bytes: int
    """All safetensors files."""

    @property
    def linear_bits(self) -> float:
        """Bits per weight of the packed linear layers."""
        return 8 * self.linear_bytes / max(1, self.linear_weights)

    @property
    def file_bits(self) -> float:
        """Bits per parameter of the whole file."""
        return 8 * self.file_bytes / max(1, self.parameters)


def save_packed(
    model: PreTrainedModel,
    weights: Mapping[str, QuantizedWeight],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    record: Mapping[str, Any],
) -> Sizes:
    """`model` is packed in place by `weights` and lies in `folder`, which transformers and every verb can load.

    Other files in `folder` stay. Raises `ConfigError` where a model is there already.
    """
    if (folder / _LAST).exists():
        raise ConfigError(f"{folder} holds a model already; choose another folder")
    pack_modules(model, weights)
    attach(model)
    unfinished = folder / ".writing"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    with quiet_transformers():
        model.save_pretrained(unfinished, max_shard_size=SHARD)
    tokenizer.save_pretrained(unfinished)
    sizes = sizes_of(model, sum(file.stat().st_size for file in unfinished.glob("*.safetensors")))
    shown = asdict(sizes) | {"linear_bits": sizes.linear_bits, "file_bits": sizes.file_bits}
    (unfinished / RECORD).write_text(json.dumps({**record, "sizes": shown}, indent=1))
    names = sorted(file.name for file in unfinished.iterdir() if file.name != _LAST)
    for name in (*names, _LAST):
        os.replace(unfinished / name, folder / name)
    unfinished.rmdir()
    return sizes


def read_record(folder: Path) -> dict[str, Any]:
    """What `save_packed` wrote beside the model. Raises `FormatError` where it is missing or damaged."""
    path = folder / RECORD
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise FormatError(f"{folder} has no {RECORD}: it was not written by lowmem quantize") from None
    except ValueError as error:
        raise FormatError(f"{path} is damaged ({error})") from error
    return record


def is_packed(model: nn.Module) -> bool:
    """Whether any layer of `model` holds packed weights."""
    return any(isinstance(module, QuantLinear | QuantEmbedding) for module in model.modules())


def sizes_of(model: nn.Module, file_bytes: int) -> Sizes:
    """The sizes of a packed model whose files take `file_bytes`."""
    layers = packed_layers(model)
    head = {id(layer) for layer in layers.values() if isinstance(layer, QuantEmbedding)}
    output = getattr(model, "get_output_embeddings", lambda: None)()
    linears = [layer for layer in layers.values() if id(layer) not in head and layer is not output]
    coded = sum(layer.packed.shape[0] * layer.packed.shape[1] for layer in layers.values())
    biases = sum(
        layer.bias.numel() for layer in layers.values() if isinstance(layer, QuantLinear) and layer.bias is not None
    )
    whole = sum(parameter.numel() for parameter in model.parameters())
    return Sizes(
        parameters=whole + coded + biases,
        linear_weights=sum(layer.packed.shape[0] * layer.packed.shape[1] for layer in linears),
        linear_bytes=sum(_nbytes(layer) for layer in linears),
        file_bytes=file_bytes,
    )


def unpack_modules(model: nn.Module) -> None:
    """Every packed layer is an ordinary one again, with the weights that its codes stand for; ties are restored."""
    tables: dict[int, nn.Embedding] = {}
    for name, layer in packed_layers(model).items():
        if isinstance(layer, QuantEmbedding):
            new: nn.Module = nn.Embedding.from_pretrained(  # type: ignore[no-untyped-call]
                unpack(layer.packed).to(layer.dtype), freeze=False, padding_idx=layer.padding_idx
            )
            assert isinstance(new, nn.Embedding)
            tables[id(layer)] = new
        else:
            new = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
            new.weight = nn.Parameter(layer.dequantized())
            if layer.bias is not None:
                new.bias = nn.Parameter(layer.bias)
        model.set_submodule(name, new)
    for name, head in list(model.named_modules()):
        if isinstance(head, TiedHead):
            tied = nn.Linear(head.in_features, head.out_features, bias=False, device="meta")
            tied.weight = tables[id(head.embedding)].weight
            model.set_submodule(name, tied)


def _nbytes(layer: QuantLinear | QuantEmbedding) -> int:
    return sum(buffer.nbytes for name, buffer in layer.named_buffers() if name != "bias")
