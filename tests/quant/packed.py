"""Random packed weights for tests: every byte drawn, so every code occurs."""

from __future__ import annotations

import torch
from torch import Tensor

from lowmem.quant.codec import BLOCK, PLANE_BYTES, Kind, PackedWeight, group_count, padded


def random_packed(kind: Kind, m: int, n: int, *, group_size: int = 0, seed: int = 0) -> PackedWeight:
    generator = torch.Generator().manual_seed(seed)
    planes = tuple(
        torch.randint(0, 256, (m, padded(n) // BLOCK * size), dtype=torch.uint8, generator=generator)
        for size in PLANE_BYTES[kind]
    )
    scales = (torch.rand(m, group_count(n, group_size), generator=generator) + 0.1).half()
    residual_scale = 0.28 if len(planes) > 1 and kind != "s3" else 0.0
    return PackedWeight(kind, (m, n), planes, scales, 0.25, residual_scale, group_size)


def decibels(signal: Tensor, other: Tensor) -> float:
    """Signal over the difference of the two, in dB."""
    noise = (signal.double() - other.double()).square().sum()
    return float(10 * torch.log10(signal.double().square().sum() / noise.clamp_min(1e-300)))
