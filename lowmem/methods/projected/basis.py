"""An orthonormal basis of the directions that a gradient uses most, from a thin sketch of it, without its SVD.

Letters: a matrix is seen with its shorter side first, g (s, l), as a view of the weight's shape; P (s, r) has
orthonormal columns, the coordinates of g are C = P' g (r, l). The range finder (Halko, Martinsson, Tropp 2011): of
Y = g O with a thin O (l, r + p), the r leading left singular vectors. Y is linear in g, so it can be summed over
micro-batches; a full gradient or its SVD is never needed. O is fixed while Y is summed. It is random at first; later
it holds the momentum's row space, which makes every refresh one more iteration of the power method on the averaged
gradient, and a little noise, so that new directions can enter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowmem.kernels.noise import direction, stream_key
from lowmem.kernels.reference import stochastic_round
from lowmem.methods.rules.base import assign_

OVERSAMPLING = 8
"""Columns of the sketch beyond the rank."""
EXPLORATION = 0.01
"""Size of the noise in a sketch that starts from momentum, relative to it."""
SLAB = 2**22
"""Entries of a weight in half precision that are moved at a time."""


def shorter_first(matrix: Tensor) -> Tensor:
    """`matrix` or its transpose, a view: no more rows than columns."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def random_basis(short: int, rank: int, *, key: int, device: torch.device) -> Tensor:
    """(short, rank), orthonormal, fp32, uniform up to the coarseness of random signs."""
    return leading_basis(direction((short, rank), key, "rademacher", device=device), rank)


def sketch_matrix(momentum: Tensor | None, *, long: int, width: int, key: int, device: torch.device) -> Tensor:
    """O (long, width), fp32. `momentum` (r, long) fills the first columns, as far as it is not zero."""
    noise = direction((long, width), key, "rademacher", device=device)
    if momentum is None:
        return noise
    known = momentum.float().T
    size = known.norm(dim=0).amax()
    share = EXPLORATION / long**0.5
    noise[:, : known.shape[1]].mul_(share).addcdiv_(known, size.clamp_min(torch.finfo(torch.float32).tiny))
    noise[:, known.shape[1] :].div_(long**0.5)
    return noise


def leading_basis(sketch: Tensor, rank: int) -> Tensor:
    """(s, rank) orthonormal: the leading left singular vectors of `sketch` (s, width), width >= rank, fp32.

    By a QR first, so that it is orthonormal to fp32's last places even where `sketch` has a smaller rank.
    """
    q, r = torch.linalg.qr(sketch)
    u, _, _ = torch.linalg.svd(r, full_matrices=False)
    leading: Tensor = q @ u[:, :rank]
    return leading


def basis_error(basis: Tensor) -> Tensor:
    """Largest entry of |P'P - I|."""
    gram = basis.float().T @ basis.float()
    return (gram - torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)).abs().max()


def coordinates(basis: Tensor, g: Tensor) -> Tensor:
    """C = P' g (r, l), fp32; the product in the dtype of `g`."""
    return (basis.to(g.dtype).T @ g).float()


def subtract_projection_(g: Tensor, basis: Tensor, coords: Tensor) -> Tensor:
    """`g` becomes g - P C in place."""
    return g.addmm_(basis.to(g.dtype), coords.to(g.dtype), alpha=-1)


def move_(weight: Tensor, basis: Tensor, step: Tensor, *, keep: float, key: int) -> None:
    """`weight` (s, l) becomes keep * weight + P `step` (r, l); half precision by stochastic rounding, in slabs."""
    if weight.dtype == torch.float32:
        weight.addmm_(basis.float(), step, beta=keep)
        return
    rows = max(1, SLAB // weight.shape[1])
    for start in range(0, weight.shape[0], rows):
        part = slice(start, start + rows)
        value = weight[part].float().addmm_(basis[part].float(), step, beta=keep)
        assign_(weight[part], value, stream_key(key, 0, start, "", "slab"))


def stored(basis: Tensor, dtype: torch.dtype, key: int) -> Tensor:
    """`basis` in `dtype`; bf16 is rounded stochastically, so that it is orthonormal on average."""
    return basis if dtype == torch.float32 else stochastic_round(basis, dtype, key)
