"""How SoftSignum and SoftMuon leave the sign: the temperature tau of phi(tau v), falling over the end of a run.

The first `hard_fraction` of the updates are hard. At the first soft update the values that phi will see are modelled as
draws from a folded Cauchy law with their median as location mu and their median absolute deviation as scale s. Later,
at progress p through the soft updates, q_p is its p-quantile and

    tau = clip(phi^-1(1 - 1e-4) / q_p, 1, tau_max)

so that about a fraction 1 - p of all entries still move by (nearly) the whole step, and the rest in proportion.

Differs from the authors' code (arXiv 2605.31371): mu and s belong to each tensor and not to all of them together.
Pooling would need every tensor at once, which a method that updates inside backward never has; and a tensor whose
gradients are small as a whole would be soft from the first soft update on. The quantile has a closed form, where they
take Newton steps. Of large tensors at most `SAMPLE` entries, evenly spaced, are looked at.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SAMPLE = 2**20
"""Entries from which location and scale are taken."""
SATURATED = 1e-4
"""1 minus the value of phi that counts as hard."""
TINY = 1e-38


def soft_progress(t: int, *, total: int, hard_fraction: float) -> float | None:
    """How far update `t` (from 1) is through the soft part of `total` updates, in [0, 1); None while it is hard."""
    hard = round(hard_fraction * total)
    if t <= hard or hard >= total:
        return None
    return min(t - 1 - hard, total - hard - 1) / (total - hard)


def location_and_scale(values: Tensor) -> tuple[Tensor, Tensor]:
    """Median and median absolute deviation, fp32 scalars."""
    flat = values.reshape(-1)
    sample = flat[:: -(-flat.numel() // SAMPLE)].float()
    location = sample.median()
    return location, (sample - location).abs().median()


def folded_cauchy_quantile(p: float, location: Tensor, scale: Tensor) -> Tensor:
    """The q >= 0 with P(|x| <= q) = p for x Cauchy about `location`; 0 <= p < 1.

    atan((q - mu) / s) + atan((q + mu) / s) = pi p is a quadratic in q; of the two forms of its root the one without
    cancellation is taken.
    """
    if p == 0:
        return torch.zeros_like(scale)
    cot = 1 / math.tan(math.pi * p)
    root = ((scale / math.sin(math.pi * p)).square() + location.square()).sqrt()
    if cot <= 0:
        return root - cot * scale
    return (scale.square() + location.square()) / (root + cot * scale).clamp_min(TINY)


def temperature(p: float, location: Tensor, scale: Tensor, *, saturation: float, tau_max: float) -> Tensor:
    """tau at progress `p`, a scalar tensor: `saturation` / q_p between 1 and `tau_max`."""
    return (saturation / folded_cauchy_quantile(p, location, scale)).clamp(1.0, tau_max)
