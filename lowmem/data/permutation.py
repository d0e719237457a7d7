"""A shuffled order that is computed, not stored: position -> row in constant time and memory.

A keyed Feistel network permutes [0, 4**h), the smallest such range that holds n (at least 64); positions that
land outside [0, n) are sent through again until they fall inside ("cycle walking"). Being a function of the key
alone, it needs no generator state, and unlike numpy's shuffles it is the same in every version of every library.
"""

from __future__ import annotations

import hashlib

_ROUNDS = 8
_MASK = 2**64 - 1


class Permutation:
    """`permutation[i]` for i = 0 … n - 1 gives every number in [0, n) once; equal (n, key), equal order."""

    def __init__(self, n: int, *key: int | str) -> None:
        if n < 1:
            raise ValueError(f"a permutation of {n} numbers does not exist; n must be positive")
        self._n = n
        self._half = max(3, ((n - 1).bit_length() + 1) // 2)
        digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * _ROUNDS).digest()
        self._keys = [int.from_bytes(digest[8 * r : 8 * r + 8], "little") for r in range(_ROUNDS)]

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, position: int) -> int:
        if not 0 <= position < self._n:
            raise IndexError(f"position {position} is outside a permutation of {self._n}")
        number = self._walk(position)
        while number >= self._n:
            number = self._walk(number)
        return number

    def _walk(self, number: int) -> int:
        low = (1 << self._half) - 1
        left, right = number >> self._half, number & low
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & low)
        return left << self._half | right


def _mix(x: int) -> int:
    """The finalizer of SplitMix64: every input bit reaches every output bit."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)
