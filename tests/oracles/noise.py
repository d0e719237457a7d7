"""Slow twins of lowmem.kernels: one weight at a time, in Python's own integers and fractions."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

WORD = 2**32


def philox(counter: tuple[int, int, int, int], key: int) -> tuple[int, int, int, int]:
    """Philox4x32-10 as its authors write it down."""
    c0, c1, c2, c3 = counter
    k0, k1 = key % WORD, key // WORD
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 // WORD) ^ c1 ^ k0, p1 % WORD, (p0 // WORD) ^ c3 ^ k1, p0 % WORD
        k0, k1 = (k0 + 0x9E3779B9) % WORD, (k1 + 0xBB67AE85) % WORD
    return c0, c1, c2, c3


def coins(x: int) -> int:
    """28 coins that count 3, four that count 1, minus their mean."""
    return 3 * bin(x // 16).count("1") + bin(x % 16).count("1") - 44


def rademacher(key: int, row: int, col: int) -> int:
    words = philox((col // 128, row, 0, 0), key)
    return 1 - 2 * (words[col % 128 // 32] >> (col % 32) & 1)


def whole_gaussian(key: int, row: int, col: int, stream: int = 1) -> int:
    words = philox((16 * (col // 64) + col % 16, row, stream, 0), key)
    return coins(words[col % 64 // 16])


def rounding_bits(key: int, row: int, col: int) -> int:
    words = philox((16 * (col // 128) + col % 16, row, 2, 0), key)
    word = words[col % 128 // 32]
    return word // 65536 if col // 16 % 2 else word % 65536


def low_rank(key: int, row: int, col: int, rank: int) -> float:
    whole = sum(whole_gaussian(key, row, k, 3) * whole_gaussian(key, col, k, 4) for k in range(rank))
    return whole / 64 / math.sqrt(rank)


def round_up_or_down(x: float, bits16: int, mantissa: int, smallest: int) -> Fraction:
    """`x` on the grid of a float format: down to the grid, one step up where noise exceeds what is missing.

    `mantissa`: stored bits of the fraction; `smallest`: exponent of the finest step. fp16 uses 13 of the 16 bits.
    """
    size = abs(Fraction(x))
    if size == 0:
        return size
    exponent = max(math.frexp(x)[1] - 1 - mantissa, smallest)
    step = Fraction(2) ** exponent
    below = size // step
    fine = 2**16 if mantissa == 7 else 2**13
    noise = bits16 if mantissa == 7 else bits16 // 8
    # The fraction of a step is held to 16 (13) bits, rounded to nearest where fp32 carries more.
    missing = round((size / step - below) * fine)
    up = missing + noise >= fine
    return (below + up) * step * (1 if x > 0 else -1)


def fp32(x: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", x))[0])
