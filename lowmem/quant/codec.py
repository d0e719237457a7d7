"""The packed weight, format version 1: what every byte means. `unpack` is the definition that kernels meet.

A weight `W` (m x n) is stored in its rotated space (`rotation.py`) as integer *levels* times scales:

    W[i, j] = gain * scales[i, j // group_size] * (level0[i, j] + residual_scale * level1[i, j])

where the term of `level1` exists for two-plane lattice kinds only, `scales` is fp16 and `gain` a power of two that
keeps it in range, so `gain * scales` is exact in fp32. All levels are small integers, so an int8 kernel that sums
`level * activation` in int32 equals the definition exactly. With `group_size = 0` a row has one scale.

Columns are padded with code 0 to whole blocks of 64. Code 0 is *not* zero in most kinds: activations of padded
columns must be zero. Bytes of a row stand in order of blocks, so a row of any n is `ceil(n / 64)` blocks, with no
waste at 576 or 1536, and 16 bytes is the unit that a lane of any vector unit takes. Planes (m, bytes) uint8:

| kind   | planes (per block) | weight `j` of a block                                | levels |
|---|---|---|---|
| s2     | 16                | bits 2p, 2p+1 of byte i, j = 16 p + i, p = 0..3      | -10 -3 3 10 |
| s3     | 16 + 8            | low bits as s2; high: bit j // 8 of byte j % 8 of plane 1 | -63 -39 -22 -7 7 22 39 63 |
| s4     | 32                | nibble p (0 low, 1 high) of byte i, j = 32 p + i     | +-(3 9 15 22 29 37 48 63) |
| int4   | 32                | as s4                                                | code - 8 |
| int8   | 64                | byte j                                               | code - 128 |
| e8     | 16                | vector v = j // 8, entry e = j % 8: byte v is the    | sign * P[index][e] + shift |
|        |                   | index, byte 8 + v the sign byte                      | in -15..15 |
| e8r    | 16 (e8) + 8       | plane 1: byte v is an index into R                   | R[index][e] in -4..4 |
| nested | 16 (e8) + 16 (e8) | plane 1 as e8                                        | as e8 |

Sign byte of `e8`: bits 0..6 set = entries 0..6 are negated; entry 7 is negated if an odd number of them is; bit 7
set = shift is -1, else +1. `P` (256 x 8) and `R` (256 x 8) are in `lattice.py`; P already holds a negated entry
7 where parity needs one, so a kernel never counts parity of patterns. The first plane of `e8r` and `nested` is a
complete `e8` weight: dropping plane 1 gives the 2-bit model from the same file (`base_plane`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from lowmem.errors import FormatError
from lowmem.quant.lattice import patterns, residual_patterns

FORMAT_VERSION = 1
BLOCK = 64
"""Weights per block of columns."""
Kind = Literal["s2", "s3", "s4", "int4", "int8", "e8", "e8r", "nested"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LATTICE: tuple[Kind, ...] = ("e8", "e8r", "nested")
"""Kinds whose codes are vectors of eight weights."""
PLANE_BYTES: dict[Kind, tuple[int, ...]] = {
    "s2": (16,),
    "s3": (16, 8),
    "s4": (32,),
    "int4": (32,),
    "int8": (64,),
    "e8": (16,),
    "e8r": (16, 8),
    "nested": (16, 16),
}
"""Bytes per block of each plane."""
_S4 = (3, 9, 15, 22, 29, 37, 48, 63)
LEVELS: dict[Kind, tuple[int, ...]] = {
    "s2": (-10, -3, 3, 10),
    "s3": (-63, -39, -22, -7, 7, 22, 39, 63),
    "s4": (*(-level for level in reversed(_S4)), *_S4),
    "int4": tuple(range(-8, 8)),
    "int8": tuple(range(-128, 128)),
}
"""Levels of scalar kinds by code: Lloyd-Max for a Gaussian, rounded to integers with 63 the largest (so level + 63
is 0..126, and two products with int8 activations fit 16 bits). s2 is 3 : 10, nearer to Lloyd-Max than 19 : 63, and
small enough that eight products fit 16 bits. int4 and int8 are uniform with a zero."""


@dataclass(frozen=True)
class PackedWeight:
    """One weight in the rotated space. Raises `FormatError` where the tensors do not fit the kind and shape."""

    kind: Kind
    shape: tuple[int, int]
    """(m, n): outputs x inputs, before padding."""
    planes: tuple[Tensor, ...]
    """uint8 (m, blocks * PLANE_BYTES[kind][k]) each, contiguous."""
    scales: Tensor
    """fp16 (m, groups)."""
    gain: float = 1.0
    """A power of two."""
    residual_scale: float = 0.0
    """Weight of plane 1's levels against plane 0's; 0 for kinds with one level."""
    group_size: int = 0
    """Columns that share a scale: a multiple of 64; 0 = the whole row."""

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise FormatError(f"packed weight of kind {self.kind!r} and shape {self.shape}: {problem}")

    def _problem(self) -> str | None:
        if self.kind not in KINDS:
            return f"unknown kind; this version reads {', '.join(KINDS)}"
        m, n = self.shape
        if self.group_size % BLOCK:
            return f"group_size {self.group_size} is not a multiple of {BLOCK}"
        want = [(m, padded(n) // BLOCK * size) for size in PLANE_BYTES[self.kind]]
        have = [tuple(plane.shape) for plane in self.planes]
        if have != want or any(plane.dtype != torch.uint8 for plane in self.planes):
            return f"planes are {have}, should be uint8 {want}"
        groups = (m, group_count(n, self.group_size))
        if tuple(self.scales.shape) != groups or self.scales.dtype != torch.float16:
            return f"scales are {self.scales.dtype} {tuple(self.scales.shape)}, should be float16 {groups}"
        if self.gain <= 0 or math.frexp(self.gain)[0] != 0.5:
            return f"gain {self.gain} is not a power of two"
        if (self.residual_scale != 0) != (self.kind in ("e8r", "nested")):
            return f"residual_scale is {self.residual_scale}"
        return None

    @property
    def nbytes(self) -> int:
        """True bytes: planes with their padding, scales, and the two numbers."""
        return sum(plane.numel() for plane in self.planes) + 2 * self.scales.numel() + 8

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / (self.shape[0] * self.shape[1])

    def base_plane(self) -> PackedWeight:
        """The 2-bit weight that is the first plane of `e8r` or `nested`. Shares memory. Raises `ValueError` else."""
        if self.kind not in ("e8r", "nested"):
            raise ValueError(f"kind {self.kind!r} has no base plane; only e8r and nested do")
        return replace(self, kind="e8", planes=self.planes[:1], residual_scale=0.0)


def padded(n: int) -> int:
    """`n` rounded up to whole blocks."""
    return -(-n // BLOCK) * BLOCK


def group_count(n: int, group_size: int) -> int:
    return -(-n // group_size) if group_size else 1


def bits_per_code(kind: Kind) -> float:
    """Bits per weight of the planes alone, without padding and scales."""
    return sum(PLANE_BYTES[kind]) * 8 / BLOCK


def unpack(packed: PackedWeight) -> Tensor:
    """The weight as fp32 (m, n) in its rotated space, on the device of the planes: the definition."""
    level = unpack_levels(packed, 0).float()
    if packed.residual_scale:
        level = level + packed.residual_scale * unpack_levels(packed, 1).float()
    return level * spread_scales(packed)


def spread_scales(packed: PackedWeight) -> Tensor:
    """gain * scale of every weight, fp32 (m, n), or (m, 1) where a row has one scale."""
    scales = packed.scales.float() * packed.gain
    if not packed.group_size:
        return scales
    return scales.repeat_interleave(packed.group_size, dim=1)[:, : packed.shape[1]]


def unpack_levels(packed: PackedWeight, plane: int) -> Tensor:
    """Integer levels int8/int16 (m, n) of one level plane (0, or 1 for the residual of lattice kinds)."""
    n = packed.shape[1]
    device = packed.planes[0].device
    if packed.kind in LATTICE:
        data = packed.planes[plane]
        if plane == 1 and packed.kind == "e8r":
            return residual_patterns().to(device)[data.long()].flatten(1)[:, :n]
        return decode_vectors(*split_vectors(data)).flatten(1)[:, :n]
    table = torch.tensor(LEVELS[packed.kind], dtype=torch.int16, device=device)
    return table[unpack_codes(packed.kind, packed.planes, n).long()]


def split_vectors(data: Tensor) -> tuple[Tensor, Tensor]:
    """(index, sign byte) uint8 (m, vectors) of an `e8` plane."""
    halves = data.reshape(data.shape[0], -1, 2, 8)
    return halves[:, :, 0].flatten(1), halves[:, :, 1].flatten(1)


def join_vectors(index: Tensor, sign: Tensor) -> Tensor:
    """The `e8` plane of (m, vectors) uint8 pairs; `vectors` is a multiple of 8."""
    return torch.stack([part.reshape(part.shape[0], -1, 8) for part in (index, sign)], dim=2).flatten(1)


def decode_vectors(index: Tensor, sign: Tensor) -> Tensor:
    """Levels int8 (..., 8) of `e8` codes."""
    bits = (sign[..., None].to(torch.int16) >> torch.arange(8, device=sign.device)) & 1
    negative = bits[..., :7]
    negative = torch.cat([negative, negative.sum(-1, keepdim=True) % 2], dim=-1)
    table = patterns().to(index.device)
    return (table[index.long()] * (1 - 2 * negative) + (1 - 2 * bits[..., 7:])).to(torch.int8)


def pack_codes(kind: Kind, codes: Tensor) -> tuple[Tensor, ...]:
    """Planes of scalar `codes`, integers (m, n). Raises `ValueError` for lattice kinds and codes out of range."""
    if kind in LATTICE:
        raise ValueError(f"{kind!r} packs vectors: use join_vectors")
    limit = len(LEVELS[kind])
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < limit:
        raise ValueError(f"codes of kind {kind!r} must be in 0..{limit - 1}")
    codes = torch.nn.functional.pad(codes, (0, padded(codes.shape[1]) - codes.shape[1])).to(torch.uint8)
    blocks = codes.reshape(codes.shape[0], -1, BLOCK)
    match kind:
        case "s2":
            return (_merge(blocks, 2).flatten(1),)
        case "s3":
            return _merge(blocks & 3, 2).flatten(1), _merge(blocks >> 2, 1).flatten(1)
        case "s4" | "int4":
            return (_merge(blocks, 4).flatten(1),)
        case _:
            return (codes.contiguous(),)


def unpack_codes(kind: Kind, planes: tuple[Tensor, ...], n: int) -> Tensor:
    """Scalar codes uint8 (m, n): the inverse of `pack_codes`."""
    match kind:
        case "s2":
            return _split(planes[0], 2)[:, :n]
        case "s3":
            return (_split(planes[0], 2) | _split(planes[1], 1) << 2)[:, :n]
        case "s4" | "int4":
            return _split(planes[0], 4)[:, :n]
        case "int8":
            return planes[0][:, :n]
        case _:
            raise ValueError(f"{kind!r} holds vectors: use split_vectors")


def _merge(blocks: Tensor, bits: int) -> Tensor:
    """(m, blocks, 64) codes -> bytes: part p of a block, of 8 * bits codes, takes bits `p * bits` of its bytes."""
    parts = blocks.reshape(*blocks.shape[:2], 8 // bits, 8 * bits)
    merged = parts[:, :, 0].clone()
    for p in range(1, 8 // bits):
        merged |= parts[:, :, p] << (p * bits)
    return merged


def _split(plane: Tensor, bits: int) -> Tensor:
    data = plane.reshape(plane.shape[0], -1, 8 * bits)
    mask = (1 << bits) - 1
    return torch.stack([data >> (p * bits) & mask for p in range(8 // bits)], dim=2).flatten(1)
