"""The definition, in plain torch, of every random direction: which bits a weight takes, and what z they make.

A parameter of any shape is a matrix: rows = shape[0], cols = the rest; a vector (n,) is one row of n, a
scalar one row of 1. All noise is Philox4x32-10 (`philox.py`) under a 64-bit key from `stream_key`, at
counter words

    c0 = block, counted along the row    c1 = row    c2 = stream (the constants below)    c3 = 0

so a row, or any part of one, can be drawn alone. Column `j` takes, from the four words that a block yields,

    rademacher   1 bit:   block j // 128,               word j // 32 % 4,  bit j % 32
    gaussian     32 bits: block 16 (j // 64) + j % 16,  word j // 16 % 4
    rounding     16 bits: block 16 (j // 128) + j % 16, word j // 32 % 4,  high half where j // 16 is odd

(16 neighbouring columns use 16 neighbouring blocks, so a vector unit needs no shuffle), and turns them into

    rademacher   z = 1 - 2 bit
    gaussian     z = (3 popcount(x >> 4) + popcount(x & 15) - 44) / 8

The Gaussian is a sum of 32 fair coins, 28 of weight 3 and 4 of weight 1: variance (28 * 9 + 4) / 256 = 1
exactly, excess kurtosis -2 (28 * 81 + 4) / 256^2 = -0.0693, |z| <= 5.5, and every z is a multiple of 1/8,
exact in any float type. `LowRank(r)` is z = U V^T / sqrt(r) with such Gaussians in U (rows x r) and V (cols
x r), whose products are summed as integers, hence exactly.

Temporaries hold about `TILE` elements at most. Nothing here looks at data, so all of it runs on fake and meta
tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from lowmem.kernels.philox import Words, words_at

STREAM_RADEMACHER, STREAM_GAUSSIAN, STREAM_ROUNDING, STREAM_LEFT, STREAM_RIGHT = range(5)
TILE = 2**20
"""Elements per block of work."""
GAUSSIAN_UNIT = 0.125
"""Gaussian directions are whole multiples of this."""
MAX_RANK = 4096
"""Sums of `rank` products of two integers up to 44 stay below 2^24, where fp32 is exact in any order."""


@dataclass(frozen=True)
class LowRank:
    """A direction of rank `rank`: z = U V^T / sqrt(rank), Gaussian factors, unit variance per weight."""

    rank: int

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= MAX_RANK:
            raise ValueError(f"LowRank({self.rank}): rank must be between 1 and {MAX_RANK}")

    @property
    def unit(self) -> float:
        """z is a whole number times this."""
        return fp32(GAUSSIAN_UNIT * GAUSSIAN_UNIT / math.sqrt(self.rank))


Kind = Literal["rademacher", "gaussian"] | LowRank
Rows = Tensor | slice | None


def fp32(number: float) -> float:
    """`number` rounded to the nearest fp32."""
    return float(struct.unpack("<f", struct.pack("<f", number))[0])


def stream_key(seed: int, step: int, probe: int, name: str, purpose: str = "direction") -> int:
    """64-bit key of the noise of one parameter at one probe of one step: a pure function of its arguments."""
    text = json.dumps(["lowmem.stream.1", seed, step, probe, purpose, name], separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """(rows, cols) under which a parameter of this shape draws its noise."""
    return (1, math.prod(shape)) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))


def row_numbers(shape: Sequence[int], rows: Rows, device: torch.device | None) -> tuple[Tensor, tuple[int, ...]]:
    """The rows asked for as int64 (k,), and the shape that `tensor[rows]` has.

    Raises `ValueError` for vectors, and for row numbers that are not int64.
    """
    if rows is not None and len(shape) < 2:
        raise ValueError(f"rows was given for shape {tuple(shape)}, which is one row: leave it out")
    if isinstance(rows, Tensor):
        if rows.dtype != torch.int64:
            raise ValueError(f"rows is {rows.dtype}; row numbers are int64")
        return rows.reshape(-1), (*rows.shape, *shape[1:])
    count = matrix_shape(shape)[0]
    picked = range(count)[rows or slice(None)]
    numbers = picked.start + picked.step * torch.arange(len(picked), dtype=torch.int64, device=device)
    return numbers, tuple(shape) if rows is None else (numbers.shape[0], *shape[1:])


def _bits(words: Words, blocks: int) -> Tensor:
    """(R, 128 blocks): every bit of every block in order."""
    shifts = torch.arange(32, dtype=torch.int64, device=words[0].device)
    bits = (torch.stack(words, dim=-1)[..., None] >> shifts) & 1
    return bits.reshape(words[0].shape[0], blocks * 128)


def _popcount(x: Tensor) -> Tensor:
    """Number of ones in the low 32 bits, by summing neighbours in ever wider fields."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    x = x + (x >> 8)
    return (x + (x >> 16)) & 63


def _whole_gaussian(rows: Tensor, first: int, width: int, *, stream: int, key: int) -> Tensor:
    """Columns [first, first + width) of 8 z, int64 in [-44, 44]. `first` is a multiple of 64."""
    chunks = -(-width // 64)
    words = words_at(rows, first // 4, 16 * chunks, stream=stream, key=key)
    parts = torch.stack([word.reshape(-1, chunks, 16) for word in words], dim=2)
    ordered = parts.reshape(rows.shape[0], chunks * 64)[:, :width]
    return 3 * _popcount(ordered >> 4) + _popcount(ordered & 15) - 44


def rounding_bits(rows: Tensor, first: int, width: int, key: int) -> Tensor:
    """Columns [first, first + width) of 16-bit rounding noise, int64. `first` is a multiple of 128."""
    chunks = -(-width // 128)
    words = words_at(rows, first // 8, 16 * chunks, stream=STREAM_ROUNDING, key=key)
    halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    parts = torch.stack([half.reshape(-1, chunks, 16) for half in halves], dim=2)
    return parts.reshape(rows.shape[0], chunks * 128)[:, :width]


def noise(rows: Tensor, first: int, width: int, key: int, kind: Kind) -> Tensor:
    """Columns [first, first + width) of the direction, fp32. `first` is a multiple of 128."""
    if isinstance(kind, LowRank):
        columns = torch.arange(first, first + width, dtype=torch.int64, device=rows.device)
        left = _whole_gaussian(rows, 0, kind.rank, stream=STREAM_LEFT, key=key)
        right = _whole_gaussian(columns, 0, kind.rank, stream=STREAM_RIGHT, key=key)
        return (left.float() @ right.float().T) * kind.unit
    if kind == "gaussian":
        whole = _whole_gaussian(rows, first, width, stream=STREAM_GAUSSIAN, key=key)
        return whole.float() * GAUSSIAN_UNIT
    if kind == "rademacher":
        blocks = -(-width // 128)
        words = words_at(rows, first // 128, blocks, stream=STREAM_RADEMACHER, key=key)
        return 1.0 - 2.0 * _bits(words, blocks)[:, :width].float()
    raise ValueError(f"kind={kind!r} is no direction; use 'rademacher', 'gaussian' or LowRank(r)")


def tiles(
    rows: int, cols: int, *, kind: Kind | None = None, like: Tensor | None = None
) -> Iterator[tuple[slice, slice]]:
    """Blocks of rows, or parts of rows, drawn with about `TILE` elements of scratch.

    Where `like` is a fake tensor, which has no values to fill in, one block tells what memory all of them need.
    """
    factor = -(-kind.rank // 64) * 64 if isinstance(kind, LowRank) else 1
    widest = max(128, TILE // factor // 128 * 128)
    height = max(1, TILE // max(factor, -(-max(1, min(cols, widest)) // 128) * 128))
    for row in range(0, rows, height):
        for col in range(0, cols, widest):
            yield slice(row, min(row + height, rows)), slice(col, min(col + widest, cols))
            if isinstance(like, FakeTensor):
                return


def direction(
    shape: Sequence[int], key: int, kind: Kind, *, rows: Rows = None, device: torch.device | None = None
) -> Tensor:
    """The direction z of a parameter of `shape`, fp32; with `rows` exactly its `[rows]`, drawn alone.

    `rows`: int64 row numbers of any shape, repeats allowed, or a slice. Raises `ValueError` for `rows` of a
    vector.
    """
    where = rows.device if isinstance(rows, Tensor) else device
    numbers, result_shape = row_numbers(shape, rows, where)
    out = torch.empty((numbers.shape[0], matrix_shape(shape)[1]), dtype=torch.float32, device=where)
    for row, col in tiles(*out.shape, kind=kind):
        out[row, col] = noise(numbers[row], col.start, col.stop - col.start, key, kind)
    return out.reshape(result_shape)
