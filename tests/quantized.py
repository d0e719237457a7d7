"""Tiny models whose linear layers hold codes, quantized in memory: what loading with `quantization:` makes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import bitsandbytes as bnb
from torch import nn

from lowmem.config.quantization import Int8, Nf4, NoQuantization, Quantization
from lowmem.quant.codec import Kind
from lowmem.quant.linear import QuantLinear
from lowmem.quant.rotation import random_hadamard
from tests.quant.packed import random_packed


def quantized(model: Any, quantization: Quantization) -> Any:
    """`model` with every hidden linear layer replaced, in place; as it is for `NoQuantization`."""
    if isinstance(quantization, NoQuantization):
        return model

    def layer(plain: nn.Linear) -> nn.Module:
        match quantization:
            case Nf4(double_quant=nested):
                made: Any = bnb.nn.Linear4bit(
                    plain.in_features,
                    plain.out_features,
                    bias=plain.bias is not None,
                    compute_dtype=plain.weight.dtype,
                    compress_statistics=nested,
                    quant_type="nf4",
                )
            case Int8():
                made = bnb.nn.Linear8bitLt(
                    plain.in_features, plain.out_features, bias=plain.bias is not None, has_fp16_weights=False
                )
        made.load_state_dict(plain.state_dict())
        return made.to("cpu")

    return _replaced(model, layer)


def packed(model: Any, kind: Kind = "s2") -> Any:
    """`model` with random codes of one of the project's own formats in every hidden linear layer, in place."""

    def layer(plain: nn.Linear) -> nn.Module:
        m, n = plain.weight.shape
        weight = replace(random_packed(kind, m, n), gain=2.0**-6)
        bias = None if plain.bias is None else plain.bias.detach()
        return QuantLinear(weight, random_hadamard(n, 1), random_hadamard(m, 2), bias=bias)

    return _replaced(model, layer)


def _replaced(model: Any, layer: Any) -> Any:
    for parent in list(model.base_model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, layer(child))
    return model
