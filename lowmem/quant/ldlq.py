"""Rounding with error feedback: later columns are coded to cancel the error of the columns already coded.

The cost of W^ in place of W is tr((W - W^) H (W - W^)^T), H the second moment of the inputs. With H = L D L^T, L unit
lower triangular in blocks of the coder's width, the columns are coded from the last block to the first,

    Q_k = nearest( W_k + (W_{>k} - Q_{>k}) L[>k, k] )

and the cost becomes sum_k tr(e_k D_k e_k^T) with e_k the rounding error of block k alone. `sweeps` of coordinate
descent may follow: each block is coded again at the best point given all others,

    Q_k = nearest( W_k + (W_{!=k} - Q_{!=k}) H[!=k, k] H[k, k]^-1 )

The feedback of far blocks is applied a panel of columns at a time, so that most work is matrix products.
`round_nearest` is the same without feedback, as an ablation. The factor is taken in fp64.

Source: Chee et al. 2023 (LDLQ), Tseng et al. 2024 (blocks), arXiv 2605.29843 (sweeps); scalar width 1 is GPTQ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowmem.quant.coders import Coder

PANEL = 64
"""Columns between two updates of all columns before them; a multiple of every coder's width."""


def feedback(H: Tensor, width: int) -> Tensor:
    """L - I of H = L D L^T: fp32 (n, n), zero on and above the blocks of the diagonal. `n` is a multiple of `width`.

    Raises `torch.linalg.LinAlgError` where H is not positive definite: damp it first (`hessian.damped`).
    """
    n = H.shape[0]
    C = torch.linalg.cholesky(H.double())
    blocks = C.reshape(n // width, width, n // width, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    inverse = torch.linalg.inv(blocks)
    L: Tensor = torch.einsum("rkc,kcd->rkd", C.reshape(n, n // width, width), inverse).reshape(n, n)
    return (L - torch.eye(n, dtype=L.dtype, device=L.device)).float()


def conditional_variance(H: Tensor) -> Tensor:
    """What an error in each column costs once later feedback has done its best: diag D of width 1, fp32 (n,)."""
    C: Tensor = torch.linalg.cholesky(H.double())
    return C.diagonal().square().float()


def proxy_loss(error: Tensor, H: Tensor) -> float:
    """tr(E H E^T), accumulated in fp64 over rows."""
    return float(((error @ H) * error).sum(dtype=torch.float64))


def round_ldlq(W: Tensor, H: Tensor, coder: Coder, scales: Tensor, *, sweeps: int = 0) -> tuple[Tensor, Tensor]:
    """(W^ fp32 (m, n), codes uint8 (m, ceil(n / width), words)) with error feedback.

    `W` fp32 (m, n); `H` positive definite (n, n); `scales` fp32 (m, n) or (m, 1): the scale of each weight (equal
    within a vector). Columns are filled up to whole vectors, in which case the filling decodes to anything.
    """
    n = W.shape[1]
    W, H, scales = _filled(W, H, scales, coder.width)
    L = feedback(H, coder.width)
    Q, pieces = torch.zeros_like(W), [torch.empty(0)] * (W.shape[1] // coder.width)
    target = W.clone()
    for stop in range(W.shape[1], 0, -PANEL):
        start = max(0, stop - PANEL)
        for k in range(stop - coder.width, start - 1, -coder.width):
            block = slice(k, k + coder.width)
            point = target[:, block] + (W[:, block.stop : stop] - Q[:, block.stop : stop]) @ L[block.stop : stop, block]
            Q[:, block], pieces[k // coder.width] = _coded(point, scales, block, coder)
        target[:, :start] += (W[:, start:stop] - Q[:, start:stop]) @ L[start:stop, :start]
    codes = torch.stack(pieces, dim=1).reshape(W.shape[0], len(pieces), -1)
    for _ in range(sweeps):
        _sweep(W, H, Q, codes, coder, scales)
    return Q[:, :n], codes


def round_nearest(W: Tensor, coder: Coder, scales: Tensor) -> tuple[Tensor, Tensor]:
    """(W^, codes) as `round_ldlq`, each vector rounded alone."""
    m, n = W.shape
    W, _, scales = _filled(W, torch.eye(n, device=W.device), scales, coder.width)
    scales = scales.expand(W.shape)
    value, codes = coder.nearest((W / scales).reshape(-1, coder.width))
    return (value.reshape(W.shape) * scales)[:, :n], codes.reshape(m, W.shape[1] // coder.width, -1)


def _coded(point: Tensor, scales: Tensor, block: slice, coder: Coder) -> tuple[Tensor, Tensor]:
    scale = scales if scales.shape[1] == 1 else scales[:, block.start : block.start + 1]
    value, codes = coder.nearest(point / scale)
    return value * scale, codes


def _sweep(W: Tensor, H: Tensor, Q: Tensor, codes: Tensor, coder: Coder, scales: Tensor) -> None:
    """One pass of coordinate descent over the blocks, in place; a block moves only where that lowers the cost."""
    gradient = (W - Q) @ H
    for k in range(0, W.shape[1], coder.width):
        block = slice(k, k + coder.width)
        inner = H[block, block]
        point = Q[:, block] + torch.linalg.solve(inner, gradient[:, block], left=False)
        value, picked = _coded(point, scales, block, coder)
        before, after = point - Q[:, block], point - value
        better = ((after @ inner) * after).sum(1) < ((before @ inner) * before).sum(1)
        value = torch.where(better[:, None], value, Q[:, block])
        codes[:, k // coder.width] = torch.where(better[:, None], picked, codes[:, k // coder.width])
        gradient -= (value - Q[:, block]) @ H[block]
        Q[:, block] = value


def _filled(W: Tensor, H: Tensor, scales: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same with columns up to a multiple of `width`, which are zero and cost nothing to the others."""
    missing = -W.shape[1] % width
    if not missing:
        return W, H.float(), scales
    wide = torch.nn.functional.pad(H.float(), (0, missing, 0, missing))
    wide.diagonal()[-missing:] = H.diagonal().float().mean()
    if scales.shape[1] > 1:
        scales = torch.nn.functional.pad(scales, (0, missing), value=1.0)
    return torch.nn.functional.pad(W, (0, missing)), wide, scales
