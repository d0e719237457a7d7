"""The two tables of the E8 codes, and the exact nearest codeword. Tables are part of the file format.

A codeword of eight weights is a pattern of half-integers, signs, and a shift of a quarter on every entry: all its
entries are odd multiples of 1/4, which the tables hold times four. Signs keep the sum of the half-integers even
(that is what makes E8 dense): an even number of sign flips keeps parity, so seven signs are free and the
eighth follows. Patterns: the 227 with squared norm at most 10, in lexicographic order, then the first 29 of squared
norm 12 without a 5/2. A pattern whose sum is odd is stored with its last entry negated, so parity of patterns
never has to be counted again. (Which 29 does not matter: mean error on a Gaussian moved by 0.2 % between six choices.)

The 1-bit residual table (`e8r`, 3 bits in all): the 240 shortest vectors of E8, zero, and fifteen of the sixteen
(+-2, 0, ..., 0), times two to be integers.

Source of the construction: Tseng et al. 2024, arXiv 2402.04396 (E8P); our own text and search, other padding vectors.
"""

from __future__ import annotations

import itertools
from functools import cache

import torch
from torch import Tensor

CHUNK = 8192
"""Vectors searched at a time: (CHUNK, 256) fp32 temporaries of 8 MB."""


@cache
def magnitudes() -> Tensor:
    """Absolute patterns in units of 1/2: int16 (256, 8), odd."""
    by_norm: dict[bool, list[tuple[int, ...]]] = {False: [], True: []}
    for pattern in itertools.product((1, 3, 5), repeat=8):
        norm = sum(entry * entry for entry in pattern)
        if norm <= 40 or (norm == 48 and 5 not in pattern):
            by_norm[norm == 48].append(pattern)
    return torch.tensor(by_norm[False] + by_norm[True][:29], dtype=torch.int16)


@cache
def patterns() -> Tensor:
    """The signed patterns P in units of 1/4: int16 (256, 8), entries +-2, 6, 10, last one negative where needed."""
    table = 2 * magnitudes()
    odd = magnitudes().sum(1) // 2 % 2 == 1
    return torch.cat([table[:, :7], torch.where(odd, -table[:, 7], table[:, 7])[:, None]], dim=1)


@cache
def residual_patterns() -> Tensor:
    """The 1-bit table R in units of 1/2: int16 (256, 8)."""
    rows: list[tuple[int, ...]] = [(0,) * 8]
    for i, j in itertools.combinations(range(8), 2):
        for signs in itertools.product((2, -2), repeat=2):
            row = [0] * 8
            row[i], row[j] = signs
            rows.append(tuple(row))
    rows += [row for row in itertools.product((1, -1), repeat=8) if sum(row) % 4 == 0]
    rows += [tuple(sign * 4 if k == i else 0 for k in range(8)) for i in range(8) for sign in (1, -1)]
    return torch.tensor(rows[:256], dtype=torch.int16)
