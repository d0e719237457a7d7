"""How values become codes, for each kind: nearest codeword of vectors, and the packed weight of all codes.

A coder works in *units of the scale*: `nearest(x)` takes x = weight / scale, fp32 (m, width), and returns what the
codes decode to, in the same units, with the codes as uint8 (m, words). `width` is 1 for scalar kinds and 8 for
lattices. `spread` is the scale that a Gaussian of unit RMS wants, before error feedback.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lowmem.quant import lattice
from lowmem.quant.codec import (
    LATTICE,
    LEVELS,
    Kind,
    PackedWeight,
    decode_vectors,
    group_count,
    join_vectors,
    pack_codes,
    padded,
)

SPREAD: dict[Kind, float] = {
    "s2": 0.151,
    "s3": 0.0342,
    "s4": 0.0434,
    "int4": 0.335,
    "int8": 0.03,
    "e8": 0.241,
    "e8r": 0.252,
    "nested": 0.26,
}
"""Scale over RMS with the least error on a Gaussian (tests/quant/test_coders.py measures it)."""
RESIDUAL_SCALE: dict[Kind, float] = {"e8r": 1.0, "nested": 0.28}
"""Levels of plane 1 against levels of plane 0, with the least error on a Gaussian."""


class Coder(Protocol):
    """One kind of code."""

    @property
    def kind(self) -> Kind: ...

    @property
    def width(self) -> int: ...

    def nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(decoded fp32 (m, width), codes uint8 (m, words)) of x fp32 (m, width)."""
        ...

    def snap(self, x: Tensor) -> Tensor:
        """What `nearest` decodes to, alone."""
        ...

    def pack(self, codes: Tensor, n: int) -> tuple[Tensor, ...]:
        """Planes of codes (m, ceil(n / width), words)."""
        ...


@dataclass(frozen=True)
class ScalarCoder:
    """Nearest of a list of levels, by thresholds half way between neighbours."""

    kind: Kind
    width: int = 1

    def nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        levels = torch.tensor(LEVELS[self.kind], dtype=x.dtype, device=x.device)
        codes = torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)
        return levels[codes], codes.to(torch.uint8)

    def snap(self, x: Tensor) -> Tensor:
        levels = LEVELS[self.kind]
        if len(levels) > 16 or 0 in levels:
            return self.nearest(x)[0]
        # Steps of the magnitude: a few passes over x, four times as fast as a search and a look-up at two bits.
        positive, size = levels[len(levels) // 2 :], x.abs()
        value = torch.full_like(x, positive[0])
        for low, high in itertools.pairwise(positive):
            value.add_(size > (low + high) / 2, alpha=high - low)
        return value.copysign_(x)

    def pack(self, codes: Tensor, n: int) -> tuple[Tensor, ...]:
        return pack_codes(self.kind, codes[:, :n, 0])


@dataclass(frozen=True)
class LatticeCoder:
    """Nearest E8 codeword; a second plane codes what the first leaves."""

    kind: Kind
    width: int = 8

    def nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        index, sign = lattice.nearest(x / 4)
        value = decode_vectors(index, sign).to(x.dtype)
        if self.kind == "e8":
            return value, torch.stack([index, sign], dim=1)
        ratio = RESIDUAL_SCALE[self.kind]
        rest = (x - value) / ratio
        if self.kind == "e8r":
            second = lattice.nearest_residual(rest / 2)
            table = lattice.residual_patterns().to(x.device, x.dtype)
            return value + ratio * table[second.long()], torch.stack([index, sign, second], dim=1)
        more = lattice.nearest(rest / 4)
        return value + ratio * decode_vectors(*more).to(x.dtype), torch.stack([index, sign, *more], dim=1)

    def snap(self, x: Tensor) -> Tensor:
        return self.nearest(x)[0]

    def pack(self, codes: Tensor, n: int) -> tuple[Tensor, ...]:
        missing = padded(n) // 8 - codes.shape[1]
        codes = torch.nn.functional.pad(codes, (0, 0, 0, missing))
        base = join_vectors(codes[..., 0], codes[..., 1])
        match self.kind:
            case "e8":
                return (base,)
            case "e8r":
                return base, codes[..., 2].contiguous()
            case _:
                return base, join_vectors(codes[..., 2], codes[..., 3])


def coder_for(kind: Kind) -> Coder:
    return LatticeCoder(kind) if kind in LATTICE else ScalarCoder(kind)


def row_scales(weight: Tensor, kind: Kind, *, group_size: int = 0, factor: float = 1.0) -> tuple[Tensor, float]:
    """(scales fp16 (m, groups), gain): `factor` times the best scale of a Gaussian with each group's RMS.

    A group of zeros takes the scale 1: its codes then decode to small numbers, not to zero, in kinds without one.
    """
    m, n = weight.shape
    groups = group_count(n, group_size)
    filled = torch.nn.functional.pad(weight, (0, groups * (group_size or n) - n))
    sums = filled.reshape(m, groups, -1).square().sum(2)
    counts = torch.full((groups,), float(group_size or n), device=weight.device)
    counts[-1] = n - (groups - 1) * (group_size or n)
    return round_scales((sums / counts).sqrt() * SPREAD[kind] * factor)


def round_scales(scales: Tensor) -> tuple[Tensor, float]:
    """fp16 scales and the power of two that brings their mean near 1; none is below the smallest normal fp16."""
    mean = float(scales.mean())
    gain = 2.0 ** round(torch.tensor(mean).log2().item()) if mean > 0 else 1.0
    smallest = float(torch.finfo(torch.float16).tiny)
    return (scales / gain).clamp(smallest, 65504).to(torch.float16), gain


def packed_weight(
    coder: Coder, codes: Tensor, shape: tuple[int, int], scales: Tensor, gain: float, group_size: int
) -> PackedWeight:
    """The packed weight of all codes of a matrix."""
    residual = RESIDUAL_SCALE.get(coder.kind, 0.0)
    return PackedWeight(coder.kind, shape, coder.pack(codes, shape[1]), scales, gain, residual, group_size)
