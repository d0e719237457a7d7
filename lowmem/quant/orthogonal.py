"""Fixed orthogonal matrices in closed form: Hadamard where one is known, Hartley elsewhere.

A Hadamard matrix of order 4k spreads a vector perfectly (all entries +-1/sqrt(n)). Powers of two come from
Sylvester's doubling; orders q + 1 and 2 (q + 1) for a prime q from Paley's two constructions (quadratic residues).
Where none of these fits, the discrete Hartley transform `cas(2 pi i j / n) / sqrt(n)` is orthogonal for every n, with
entries at most sqrt(2 / n). All are pure functions of the order: nothing is drawn, so nothing has to be stored.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowmem.quant.constant import constant

LARGEST_PALEY = 256
"""A dense stage costs its order in multiplications per element, so larger fixed factors are not looked for."""


@constant
def base_matrix(order: int) -> Tensor:
    """Orthogonal fp64 (order, order): the normalised Hadamard matrix if `_hadamard` knows one, else Hartley's."""
    signs = _hadamard(order)
    if signs is not None:
        return signs / math.sqrt(order)
    angle = 2 * math.pi / order * (torch.arange(order)[:, None] * torch.arange(order) % order).double()
    return (angle.cos() + angle.sin()) / math.sqrt(order)


@constant
def _hadamard(order: int) -> Tensor | None:
    """+-1 fp64 matrix with orthogonal rows, or None where neither doubling nor Paley gives one."""
    if order == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if order % 2 == 0 and (half := _hadamard(order // 2)) is not None:
        return torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), half)
    if order % 4 or order > LARGEST_PALEY:
        return None
    if _is_prime(order - 1):
        return _paley_one(order - 1)
    if _is_prime(order // 2 - 1) and (order // 2 - 1) % 4 == 1:
        return _paley_two(order // 2 - 1)
    return None


def fixed_factor(n: int) -> int:
    """The fixed Kronecker factor of a rotation of order `n`: 1 for powers of two, else the smallest multiple of the
    odd part of `n` that has a Hadamard matrix and divides `n`, else the odd part itself (Hartley)."""
    odd = n
    while odd % 2 == 0:
        odd //= 2
    if odd == 1:
        return 1
    for factor in (4 * odd, 8 * odd):
        if n % factor == 0 and _hadamard(factor) is not None:
            return factor
    return odd


def _residues(q: int) -> Tensor:
    """Jacobsthal matrix (q, q): entry (i, j) is the quadratic character of i - j modulo the prime q."""
    character = -torch.ones(q, dtype=torch.float64)
    character[torch.arange(1, q) ** 2 % q] = 1
    character[0] = 0
    return character[(torch.arange(q)[:, None] - torch.arange(q)) % q]


def _bordered(q: int, corner: float) -> Tensor:
    """The Jacobsthal matrix with a row of ones above and `corner` times ones at the left."""
    matrix = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    matrix[0, 1:], matrix[1:, 0], matrix[1:, 1:] = 1, corner, _residues(q)
    return matrix


def _paley_one(q: int) -> Tensor:
    return torch.eye(q + 1, dtype=torch.float64) + _bordered(q, -1)


def _paley_two(q: int) -> Tensor:
    plus = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    diagonal = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    return torch.kron(_bordered(q, 1), plus) + torch.kron(torch.eye(q + 1, dtype=torch.float64), diagonal)


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
