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

import torch
from torch import Tensor

from lowmem.quant.constant import constant

CHUNK = 8192
"""Vectors searched at a time: (CHUNK, 256) fp32 temporaries of 8 MB."""


@constant
def magnitudes() -> Tensor:
    """Absolute patterns in units of 1/2: int16 (256, 8), odd."""
    by_norm: dict[bool, list[tuple[int, ...]]] = {False: [], True: []}
    for pattern in itertools.product((1, 3, 5), repeat=8):
        norm = sum(entry * entry for entry in pattern)
        if norm <= 40 or (norm == 48 and 5 not in pattern):
            by_norm[norm == 48].append(pattern)
    return torch.tensor(by_norm[False] + by_norm[True][:29], dtype=torch.int16)


@constant
def patterns() -> Tensor:
    """The signed patterns P in units of 1/4: int16 (256, 8), entries +-2, 6, 10, last one negative where needed."""
    table = 2 * magnitudes()
    odd = magnitudes().sum(1) // 2 % 2 == 1
    return torch.cat([table[:, :7], torch.where(odd, -table[:, 7], table[:, 7])[:, None]], dim=1)


@constant
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


def nearest(x: Tensor) -> tuple[Tensor, Tensor]:
    """The codeword nearest to each row of `x` (N, 8), fp32, in units where codewords are odd multiples of 1/4.

    Returns (index, sign byte), uint8 (N,) each: exact, ties broken either way. Magnitudes are tried in the sorted order
    of |x|: for patterns that all permutations share (the first 227) no other order can be nearer, also
    where the smallest entry has to change sign for parity.
    """
    if not len(x):
        return torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.uint8)
    parts = [_nearest_part(part) for part in torch.split(x, CHUNK)]
    return torch.cat([index for index, _ in parts]), torch.cat([sign for _, sign in parts])


def nearest_residual(x: Tensor) -> Tensor:
    """Index, uint8 (N,), of the row of `residual_patterns / 2` nearest to each row of `x` (N, 8)."""
    table = residual_patterns().to(x.device, x.dtype) / 2
    half = table.square().sum(1) / 2
    parts = [(part @ table.T - half).argmax(1).to(torch.uint8) for part in torch.split(x, CHUNK)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8)


@constant
def _shapes() -> Tensor:
    """The seven magnitudes, largest entry first, that all permutations share; half-integers fp32 (7, 8)."""
    rows = [[1.5] * k + [0.5] * (8 - k) for k in range(5)] + [[2.5] + [0.5] * 7, [2.5, 1.5] + [0.5] * 6]
    return torch.tensor(rows)


@constant
def _index_of() -> Tensor:
    """Index by the ternary number of a magnitude pattern (digit 0, 1, 2 for 1/2, 3/2, 5/2): uint8 (6561,)."""
    table = torch.zeros(3**8, dtype=torch.uint8)
    table[_ternary(magnitudes().long() // 2)] = torch.arange(256, dtype=torch.uint8)
    return table


def _ternary(digits: Tensor) -> Tensor:
    return (digits * 3 ** torch.arange(8, device=digits.device)).sum(-1)


def _nearest_part(x: Tensor) -> tuple[Tensor, Tensor]:
    plus, minus = (_nearest_shifted(x - shift) for shift in (0.25, -0.25))
    better = (minus[0] - minus[3]) > (plus[0] - plus[3])
    index = torch.where(better, minus[1], plus[1])
    sign = torch.where(better, minus[2] | 128, plus[2])
    return index, sign


def _nearest_shifted(v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For one shift: (2 <v, c> - |c|^2, index, signs of entries 0..6, |v|^2) of the best codeword c."""
    absolute = v.abs()
    ordered, order = absolute.sort(dim=1, descending=True)
    negative = v < 0
    # The sum of half-integer magnitudes of shape k and of its signs decides parity; `odd` says that signs are odd.
    odd = negative.sum(1) % 2 == 1
    shapes = _shapes().to(v.device, v.dtype)
    shape_odd = shapes.sum(1).long() % 2 == 1
    flip = odd[:, None] != shape_odd
    smallest = 2 * ordered[:, 7:]
    score = 2 * ordered @ shapes.T - shapes.square().sum(1) - flip * smallest
    best, which = score.max(1)
    digits = torch.zeros_like(order).scatter_(1, order, (shapes.long())[which])
    index = _index_of().to(v.device)[_ternary(digits)]
    flipped = torch.zeros_like(negative).scatter_(1, order[:, 7:], flip.gather(1, which[:, None]))
    signs = negative ^ flipped
    # The padding patterns (five 3/2) need a look of their own only where even the best arrangement of one would win.
    tall = torch.tensor([1.5] * 5 + [0.5] * 3, dtype=v.dtype, device=v.device)
    wanted = (2 * ordered @ tall - 12 > best).nonzero()[:, 0]
    if len(wanted):
        _try_padding(absolute[wanted], negative[wanted], odd[wanted], wanted, best, index, signs)
    weights = 2 ** torch.arange(7, device=v.device)
    return best, index, (signs[:, :7] * weights).sum(1).to(torch.uint8), v.square().sum(1)


def _try_padding(
    absolute: Tensor, negative: Tensor, odd: Tensor, rows: Tensor, best: Tensor, index: Tensor, signs: Tensor
) -> None:
    """Patterns 227..255 for some rows; writes into `best`, `index` and `signs` where one of them is nearer."""
    table = magnitudes()[227:].to(absolute.device, absolute.dtype) / 2
    cost, entry = (absolute[:, None, :] * table).min(2)
    flip = odd[:, None] != (table.sum(1).long() % 2 == 1)
    score, which = (2 * absolute @ table.T - 12 - 4 * cost * flip).max(1)
    won = score > best[rows]
    rows, which = rows[won], which[won]
    flipped = torch.zeros_like(negative[won])
    flipped.scatter_(1, entry[won].gather(1, which[:, None]), flip[won].gather(1, which[:, None]))
    best[rows] = score[won]
    index[rows] = (227 + which).to(torch.uint8)
    signs[rows] = negative[won] ^ flipped
