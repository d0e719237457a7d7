"""Philox4x32-10: a keyed bijection of a 128-bit counter, so a random number is computed from where it stands.

Source: Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3". Words are unsigned
32-bit numbers held in int64, because torch has no arithmetic on uint32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

MULTIPLIER = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
MASK = 0xFFFFFFFF

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def _product(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low half of the 64-bit product. int64 wraps, which keeps all its unsigned bits."""
    product = word * multiplier
    return (product >> 32) & MASK, product & MASK


def philox4x32(counter: Words, key: int) -> Words:
    """Four random words for each counter. The counter's words broadcast; `key` is 64 bits, low word first."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & MASK, (key >> 32) & MASK
    # Memory is the same from the fourth round on, and a fake tensor has nothing else to tell.
    for _ in range(4 if isinstance(c1, FakeTensor) else ROUNDS):
        high0, low0 = _product(c0, MULTIPLIER[0])
        high1, low1 = _product(c2, MULTIPLIER[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def words_at(rows: Tensor, first_block: int, blocks: int, *, stream: int, key: int) -> Words:
    """The words at counters (block, row, stream, 0): four (len(rows), blocks) tensors.

    `rows` is int64, 1-D.
    """
    device = rows.device
    block = torch.arange(first_block, first_block + blocks, dtype=torch.int64, device=device)[None, :]
    zero = torch.zeros((), dtype=torch.int64, device=device)
    c0, c1, c2, c3 = philox4x32((block, rows[:, None], zero + stream, zero), key)
    shape = (rows.shape[0], blocks)
    return c0.expand(shape), c1.expand(shape), c2.expand(shape), c3.expand(shape)
