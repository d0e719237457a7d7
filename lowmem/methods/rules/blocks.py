"""Eight bits per number: blocks of 256 share a scale, and 256 levels lie denser the nearer they are to zero.

The levels are those of dynamic tree quantization (Dettmers et al., arXiv 2110.02861): in the decade 10^(k - 6), with k
from 0 to 6, the means of 2^k equal intervals of [0.1, 1] (twice as many where there is no sign), then zero and one.
Relative errors are small over seven decades, which the moments of Adam need; the largest of a block is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 256
"""Numbers that share a scale: 4 bytes in 256, or 1/64 byte each."""
DECADES = 7


def levels(*, signed: bool) -> tuple[float, ...]:
    """The 256 levels in order, from -1 (or 0) to 1."""
    positive = [1.0]
    for decade in range(DECADES):
        count = 2**decade * (1 if signed else 2)
        step = 0.9 / count
        positive += [(0.1 + step * (i + 0.5)) * 10.0 ** (decade - DECADES + 1) for i in range(count)]
    negative = [-level for level in positive[1:]] if signed else []
    return tuple(sorted([*negative, 0.0, *positive]))


SIGNED, UNSIGNED = levels(signed=True), levels(signed=False)


class Codec:
    """Numbers of one kind on one device, to and from codes."""

    def __init__(self, known: tuple[float, ...], device: torch.device) -> None:
        self._levels = torch.tensor(known, dtype=torch.float32, device=device)
        self._between = (self._levels[1:] + self._levels[:-1]) / 2

    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        """fp32 numbers (n,) of `codes` (n,) uint8 with one scale per block."""
        values = torch.zeros(scales.numel() * BLOCK, dtype=torch.float32, device=codes.device)
        values[: codes.numel()] = self._levels.index_select(0, codes.int())
        return values.view(-1, BLOCK).mul_(scales[:, None]).view(-1)[: codes.numel()]

    def encode_(self, values: Tensor, codes: Tensor, scales: Tensor, *, keep_positive: bool = False) -> None:
        """`codes` and `scales` take the nearest to `values` (n,), which is overwritten.

        With `keep_positive` what is above zero does not become zero, however small it is in its block.
        """
        nonzero = values > 0 if keep_positive else None
        blocks = torch.nn.functional.pad(values, (0, -values.numel() % BLOCK)).view(-1, BLOCK)
        scales.copy_(blocks.abs().amax(dim=1))
        flat = blocks.div_(scales.clamp_min(1e-38)[:, None]).view(-1)[: values.numel()]
        nearest = torch.bucketize(flat, self._between, out_int32=True)
        codes.copy_(nearest if nonzero is None else torch.maximum(nearest, nonzero.int()))
