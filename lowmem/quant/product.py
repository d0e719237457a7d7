"""`x W^T` for a packed weight, by a recorded choice: the native kernels, Triton, or the definition in torch.

`reference` is the definition (`codec.unpack`, then a product). Native kernels serve up to `FEW` tokens on a CPU; above,
unpacking once and torch's own product cost less. int8 activations (a scale for every 64 columns) are taken where
their error, about -45 dB on rotated activations, is at least 20 dB below that of rounding the weight: every kind of at
most 4 bits. int8 weights keep fp32 activations. LOWMEM_ACTIVATIONS=exact or int8 overrides that, LOWMEM_KERNELS
overrides the implementation.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from lowmem.errors import KernelUnavailable
from lowmem.kernels import packed as native
from lowmem.kernels.dispatch import ENVIRONMENT, Choice, KernelChoice, chosen
from lowmem.quant.codec import LEVELS, Kind, PackedWeight, unpack
from lowmem.quant.constant import constant
from lowmem.quant.lattice import patterns, residual_patterns

FEW = 16
"""Tokens up to which a CPU reads packed weights instead of unpacking them."""
ACTIVATIONS = "LOWMEM_ACTIVATIONS"
Activations = Literal["exact", "int8"]


@dataclass(frozen=True)
class ProductChoice:
    """What computes a product, and why."""

    kernel: KernelChoice
    activations: Activations
    reason: str


def choose(device: torch.device, kind: Kind, tokens: int) -> ProductChoice:
    """The implementation for `tokens` rows of activations. Raises `KernelUnavailable` as `dispatch.chosen` does."""
    return _choose(chosen(device, torch.float32), kind, tokens, os.environ.get(ACTIVATIONS))


@lru_cache(maxsize=1024)
def _choose(base: Choice, kind: Kind, tokens: int, asked: str | None) -> ProductChoice:
    activations = _activations(kind, asked)
    if base.name is KernelChoice.NATIVE:
        if tokens > FEW:
            reason = f"{tokens} tokens exceed {FEW}: unpacked once, multiplied by torch"
            return ProductChoice(KernelChoice.REFERENCE, "exact", reason)
        return ProductChoice(base.name, activations, f"{base.reason}, {activations} activations")
    return ProductChoice(base.name, "exact", base.reason)


def product(x: Tensor, weight: PackedWeight) -> Tensor:
    """`x` (tokens, n) fp32 times the transposed weight in its rotated space: fp32 (tokens, m)."""
    choice = choose(x.device, weight.kind, x.shape[0])
    match choice.kernel:
        case KernelChoice.NATIVE:
            return native_product(x, weight, exact=choice.activations == "exact")
        case KernelChoice.TRITON:
            from lowmem.quant.triton_product import triton_product

            return triton_product(x, weight)
    return reference(x, weight)


def reference(x: Tensor, weight: PackedWeight) -> Tensor:
    """The definition."""
    return x @ unpack(weight).T


def native_product(x: Tensor, weight: PackedWeight, *, exact: bool) -> Tensor:
    """By the C++ kernels, whatever the number of tokens."""
    return native.matmul(
        x,
        weight.planes,
        weight.scales,
        kind=weight.kind,
        group_size=weight.group_size,
        gain=weight.gain,
        residual_scale=weight.residual_scale,
        tables=tables(weight.kind),
        exact=exact,
    )


@constant
def tables(kind: Kind) -> tuple[Tensor, int, Tensor, Tensor]:
    """What the kernels look up; see `kernels.packed.matmul`."""
    levels = LEVELS.get(kind, (0,)) if kind != "int8" else (0,)
    offset = -min(levels)
    codes = torch.arange(16)
    stored = torch.tensor([level + offset for level in levels], dtype=torch.uint8)
    table = torch.stack([stored[codes % len(levels)], stored[(codes >> 2) % len(levels)]])
    lattice = native.rows_of_nibbles(patterns() // 2 + 8)
    return table, offset, lattice, native.rows_of_nibbles(residual_patterns() + 4)


def _activations(kind: Kind, named: str | None) -> Activations:
    match named:
        case None:
            return "exact" if kind == "int8" else "int8"
        case "exact" | "int8":
            return named
    raise KernelUnavailable(
        f"{ACTIVATIONS}={named} is no kind of activation; use exact or int8 ({ENVIRONMENT} is apart)"
    )
