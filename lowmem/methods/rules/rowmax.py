"""RowMax and ColumnMax: steepest descent in the norms of the largest row sum and of the largest column sum.

    m = b m + (1 - b) g        w = (1 - lr wd) w - lr s
    s_ij = sign(m_ij) / k_i  where |m_ij| = max_j |m_ij|, else 0        k_i: how many entries of row i share the maximum

(columns: the same with i and j swapped). For y = W x, the largest sum of a row's magnitudes bounds max|y| by max|x|
(inf -> inf), the largest of a column |y|_1 by |x|_1 (1 -> 1); s is the step of that norm 1 with the largest inner
product with m, sum_i max_j |m_ij| (tested). So one entry of each row moves, by lr.

State: 4 bytes per parameter (m in fp32). For hidden matrices; everything else takes the second rule.
A reconstruction: the pair is named by Optimizer-Model Consistency (arXiv 2605.06654) as the geometry between sign
descent (1 -> inf) and Muon (2 -> 2); momentum and which of the two is a row are ours, no settings were found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lowmem.methods.rules.slabs import descend_

Side = Literal["row", "column"]


@dataclass(frozen=True)
class RowMax:
    momentum: float = 0.95
    side: Side = "row"
    weight_decay: float = 0.0

    @property
    def title(self) -> str:
        return "RowMax" if self.side == "row" else "ColumnMax"

    def init(self, weight: Tensor) -> dict[str, Tensor]:
        return {"exp_avg": torch.zeros_like(weight, dtype=torch.float32)}

    def update_(
        self, weight: Tensor, grad: Tensor, state: dict[str, Tensor], *, lr: float, t: int, rounding_key: int
    ) -> None:
        mean = state["exp_avg"].lerp_(grad.float(), 1 - self.momentum)
        step = largest_entries(mean, self.side)
        descend_(weight, step, step=lr, lr=lr, weight_decay=self.weight_decay, rounding_key=rounding_key)


def largest_entries(matrix: Tensor, side: Side) -> Tensor:
    """s above: sign of the largest entries of every row (column), shared among equals, 0 in rows of zeros."""
    dim = 1 if side == "row" else 0
    size = matrix.abs()
    chosen = (size == size.amax(dim, keepdim=True)).to(matrix.dtype)
    return matrix.sign() * chosen / chosen.sum(dim, keepdim=True)
