"""Which linear gets how many bits under a budget, from what coding each one alone does to the model's answers.

Each linear in turn is coded by a cheap probe (RHT, nearest, 2 bits) while all others stay whole, and the mean KL
divergence of the next-token distributions to the original model's is its sensitivity. For small errors KL is quadratic
in the error, so the cost at another kind is the KL times the ratio of the two kinds' errors on a Gaussian. Budgets are
met by buying, from the cheapest kinds up, whichever step lowers the summed KL most per byte: exact where each linear's
steps lose in value as they grow (the lower convex hull is taken), up to the last step that did not fit.

One forward pass of the calibration text per linear; interactions between linears are not seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowmem.errors import BudgetError
from lowmem.quant.codec import PLANE_BYTES, Kind, padded
from lowmem.quant.quantize import QuantizeOptions, dequantize, quantize_weight

GAUSSIAN_ERROR: dict[Kind, float] = {
    "s2": 0.1175,
    "e8": 0.0914,
    "s3": 0.0347,
    "e8r": 0.0297,
    "s4": 0.0096,
    "nested": 0.0087,
}
"""Error per unit variance of plain rounding (tests/quant/test_coders.py)."""
PROBE: Kind = "s2"


@dataclass(frozen=True)
class Choice:
    """One kind for one linear."""

    kind: Kind
    nbytes: int
    cost: float
    """Estimated KL, nats per token."""


@torch.no_grad()
def measure_sensitivity(
    model: nn.Module, batches: Sequence[Mapping[str, Tensor]], names: Sequence[str], *, seed: int = 0
) -> dict[str, float]:
    """Mean KL (nats per token) from the original model when each linear of `names` alone is coded by the probe.

    Weights are as they were afterwards, bit for bit.
    """
    model.eval()
    wanted = [_log_probabilities(model, batch) for batch in batches]
    options = QuantizeOptions(kind=PROBE, candidates=("rht",), error_feedback=False, seed=seed)
    found = {}
    for name in names:
        weight = model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        kept = weight.clone()
        weight.copy_(dequantize(quantize_weight(kept, torch.eye(kept.shape[1]), options)))
        try:
            divergence = [_divergence(w, _log_probabilities(model, b)) for w, b in zip(wanted, batches, strict=True)]
        finally:
            weight.copy_(kept)
        found[name] = max(0.0, sum(divergence) / len(divergence))
    return found


def choices(shape: tuple[int, int], sensitivity: float, kinds: Sequence[Kind]) -> tuple[Choice, ...]:
    """Bytes (without rotations) and estimated cost of each kind for a linear of this shape."""
    m, n = shape
    found = []
    for kind in kinds:
        nbytes = m * padded(n) // 64 * sum(PLANE_BYTES[kind]) + 2 * m + 8
        found.append(Choice(kind, nbytes, sensitivity * GAUSSIAN_ERROR[kind] / GAUSSIAN_ERROR[PROBE]))
    return tuple(found)


def allocate(options: Mapping[str, Sequence[Choice]], budget_bytes: int) -> dict[str, Choice]:
    """One choice for each name, at most `budget_bytes` together, the sum of costs about least.

    Raises `BudgetError` where the cheapest choices do not fit.
    """
    hulls = {name: _hull(found) for name, found in options.items()}
    spent = sum(hull[0].nbytes for hull in hulls.values())
    if spent > budget_bytes:
        raise BudgetError(f"the smallest kinds take {spent} bytes and {budget_bytes} are allowed: raise the size")
    level = dict.fromkeys(hulls, 0)
    steps = sorted(
        ((_gain(hull[k], hull[k + 1]), name, k) for name, hull in hulls.items() for k in range(len(hull) - 1)),
        key=lambda step: (-step[0], step[1], step[2]),
    )
    for _, name, k in steps:
        more = hulls[name][k + 1].nbytes - hulls[name][k].nbytes
        if level[name] == k and spent + more <= budget_bytes:
            level[name], spent = k + 1, spent + more
    return {name: hull[level[name]] for name, hull in hulls.items()}


def _gain(low: Choice, high: Choice) -> float:
    """Cost saved per byte."""
    return (low.cost - high.cost) / (high.nbytes - low.nbytes)


def _hull(found: Sequence[Choice]) -> list[Choice]:
    """The choices worth considering: by bytes, each saving less per byte than the one before it."""
    hull: list[Choice] = []
    for choice in sorted(found, key=lambda c: (c.nbytes, c.cost)):
        if hull and choice.cost >= hull[-1].cost:
            continue
        while len(hull) > 1 and _gain(hull[-1], choice) >= _gain(hull[-2], hull[-1]):
            hull.pop()
        if hull and hull[-1].nbytes == choice.nbytes:
            continue
        hull.append(choice)
    return hull


def _log_probabilities(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    return torch.log_softmax(model(**batch, use_cache=False).logits.double(), dim=-1)


def _divergence(wanted: Tensor, have: Tensor) -> float:
    value = float((wanted.exp() * (wanted - have)).sum(-1).mean())
    assert math.isfinite(value), "log probabilities are finite"
    return value
