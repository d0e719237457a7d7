"""Packed layers in the place of a model's own, from coded weights or, still without bytes, from their headers.

A header is what a layer is beside its tensors, in JSON. `headers` reads them off a model, `put_shells` makes a model of
the same architecture ready to be filled with the tensors of `model.state_dict()`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lowmem.errors import ConfigError, FormatError
from lowmem.quant.codec import PackedWeight
from lowmem.quant.format import side_header
from lowmem.quant.linear import QuantEmbedding, QuantLinear, TiedHead, empty_packed
from lowmem.quant.quantize import QuantizedWeight
from lowmem.quant.rotation import Rotation, Schedule

Headers = dict[str, dict[str, Any]]
TIED = "tied_head"
"""Kind of the header of a head that reads the embedding's table."""


def pack_modules(model: nn.Module, weights: Mapping[str, QuantizedWeight]) -> None:
    """The linears and embeddings named in `weights` are packed; a head that was tied to one of them reads its table.

    Raises `ConfigError` for modules that a packed layer cannot stand for.
    """
    heads = _tied_heads(model, weights)
    for name, weight in weights.items():
        module = model.get_submodule(name)
        new = _embedding(name, module, weight) if isinstance(module, nn.Embedding) else _linear(name, module, weight)
        model.set_submodule(name, new)
    for name, table in heads.items():
        _put_head(model, name, table)


def packed_layers(model: nn.Module) -> dict[str, QuantLinear | QuantEmbedding]:
    """Every packed layer that owns bytes, by name."""
    kinds = (QuantLinear, QuantEmbedding)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def packed_weights(model: nn.Module) -> int:
    """How many weights the packed layers of `model` stand for; a tied head has none of its own."""
    return sum(layer.packed.shape[0] * layer.packed.shape[1] for layer in packed_layers(model).values())


def headers(model: nn.Module) -> Headers:
    """What `put_shells` needs to rebuild the packed layers of `model`."""
    found: Headers = {}
    tables = {id(layer): name for name, layer in packed_layers(model).items()}
    for name, module in model.named_modules():
        match module:
            case QuantLinear():
                sides = {side: side_header(module.rotation(side)) for side in ("in", "out")}
                found[name] = _header(module.packed) | sides | {"bias": module.bias is not None}
            case QuantEmbedding():
                found[name] = _header(module.packed) | {"embedding": True}
            case TiedHead():
                found[name] = {"kind": TIED, "table": tables[id(module.embedding)]}
            case _:
                pass
    return found


def put_shells(model: nn.Module, wanted: Headers, *, partial: bool = False) -> None:
    """The layers named in `wanted` are packed layers on the meta device, to be filled.

    Layers beyond the depth of `model` are passed over if `partial`. Raises `FormatError` naming what does not fit.
    """
    heads_last = sorted(wanted.items(), key=lambda item: item[1]["kind"] == TIED)
    for name, header in heads_last:
        try:
            module = model.get_submodule(name)
        except AttributeError:
            if partial:
                continue
            raise FormatError(f"the model has no layer {name!r}, which the quantized files hold") from None
        with torch.device("meta"):
            if header["kind"] == TIED:
                _put_head(model, name, header["table"])
            else:
                model.set_submodule(name, _shell(name, module, header))


def _linear(name: str, module: nn.Module, weight: QuantizedWeight) -> QuantLinear:
    if not isinstance(module, nn.Linear):
        raise ConfigError(f"{name} is a {type(module).__name__}, and only linear layers and embeddings are packed")
    bias = None if module.bias is None else module.bias.detach()
    return QuantLinear(weight.packed, weight.right, weight.left, bias=bias).to(module.weight.device)


def _embedding(name: str, module: nn.Embedding, weight: QuantizedWeight) -> QuantEmbedding:
    if type(module) is not nn.Embedding:
        raise ConfigError(
            f"{name} is a {type(module).__name__}, which does more than look rows up; leave the embeddings as they are "
            "(embeddings: 16)"
        )
    table = QuantEmbedding(weight.packed, padding_idx=module.padding_idx, dtype=module.weight.dtype)
    return table.to(module.weight.device)


def _tied_heads(model: nn.Module, weights: Mapping[str, QuantizedWeight]) -> dict[str, str]:
    """Linears that share the weight of an embedding in `weights`, and that embedding's name."""
    modules = {name: model.get_submodule(name) for name in weights}
    tables = {id(module.weight): name for name, module in modules.items() if isinstance(module, nn.Embedding)}
    linears = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return {name: tables[id(module.weight)] for name, module in linears if id(module.weight) in tables}


def _put_head(model: nn.Module, name: str, table: str) -> None:
    embedding = model.get_submodule(table)
    if not isinstance(embedding, QuantEmbedding):
        raise FormatError(f"{name!r} reads the table of {table!r}, which is not packed")
    if getattr(model.get_submodule(name), "bias", None) is not None:
        raise ConfigError(f"{name} has a bias and shares the embedding's table; leave the embeddings as they are")
    model.set_submodule(name, TiedHead(embedding))


def _header(packed: PackedWeight) -> dict[str, Any]:
    return {
        "kind": packed.kind,
        "shape": list(packed.shape),
        "gain": packed.gain,
        "residual_scale": packed.residual_scale,
        "group_size": packed.group_size,
    }


def _shell(name: str, module: nn.Module, header: dict[str, Any]) -> QuantLinear | QuantEmbedding:
    try:
        rows, columns = header["shape"]
        have = tuple(getattr(module, "weight", torch.empty(0)).shape)
        if have != (rows, columns):
            raise FormatError(f"{name!r} is {(rows, columns)} in the quantized files and {have} in the model's config")
        residual, gain = header["residual_scale"], header["gain"]
        weight = empty_packed(
            header["kind"], (rows, columns), group_size=header["group_size"], residual_scale=residual, gain=gain
        )
        dtype = _dtype_of(module)
        if header.get("embedding"):
            return QuantEmbedding(weight, padding_idx=getattr(module, "padding_idx", None), dtype=dtype)
        bias = torch.empty(rows, dtype=dtype) if header["bias"] else None
        return QuantLinear(weight, _empty_rotation(header["in"]), _empty_rotation(header["out"]), bias=bias)
    except KeyError as missing:
        raise FormatError(f"the header of {name!r} has no {missing.args[0]!r}: config.json is damaged") from missing


def _dtype_of(module: nn.Module) -> torch.dtype:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.dtype


def _empty_rotation(header: dict[str, Any]) -> Rotation:
    order, mode = header["order"], header["mode"]
    schedule = Schedule(header["fixed"], tuple(header["radices"]))
    if mode == "none":
        return Rotation(order, "none", schedule=schedule)
    stages = schedule.radices if mode == "harp" else ()
    return Rotation(
        order,
        mode,
        torch.empty(order, dtype=torch.int8),
        schedule,
        tuple(torch.empty(order // b, b * (b - 1) // 2, dtype=torch.int8) for b in stages),
        tuple(torch.empty(order // b, dtype=torch.float16) for b in stages),
    )
