"""LoRA-Muon against its definition: the steepest step of one factor under a bound on the spectral norm."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowmem.methods.lowrank.lora_muon import LoraMuon, inverse_root
from lowmem.methods.lowrank.observe import Observed
from lowmem.methods.lowrank.pair import Pair
from lowmem.methods.lowrank.pair_rule import PairGradient
from tests.methods.lowrank.test_lorsum import draw

M, N = 12, 10


def pair_of(rank: int, *, seed: int = 0) -> Pair:
    first, second = nn.Linear(N, rank, bias=False), nn.Linear(rank, M, bias=False)
    first.weight.data.copy_(draw(rank, N, seed=seed))
    second.weight.data.copy_(draw(M, rank, seed=seed + 1))
    return Pair("layer", first, second, scale=2.0)


def move(pair: Pair, *, lr: float, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """G, and how much s B A changed by each factor's own step."""
    g = draw(M, N, seed=seed).float()
    a, b = pair.a.detach().clone(), pair.b.detach().clone()
    gradient = PairGradient(pair.scale * b.T @ g, pair.scale * g @ a.T, Observed())
    rule = LoraMuon(momentum=0.0, damping=1e-9, scale="aspect", ns_steps=12)
    with torch.no_grad():
        rule.update_(pair, gradient, rule.init(pair), lr=lr, peak=lr, t=1)
        return g, pair.scale * b @ (pair.a - a), pair.scale * (pair.b - b) @ a


@pytest.mark.parametrize("rank", [2, 5])
def test_each_factors_step_has_the_same_spectral_norm_whatever_the_rank(rank: int) -> None:
    _, by_a, by_b = move(pair_of(rank), lr=0.1)
    stretch = (M / N) ** 0.5
    for change in (by_a, by_b):
        singular = torch.linalg.svdvals(change)[:rank] / stretch
        assert float(singular.max()) <= 0.1 * 1.2, "Newton-Schulz leaves singular values within 0.68 ... 1.2"
        assert float(singular.min()) >= 0.1 * 0.6


def test_the_direction_is_the_steepest_within_the_bound() -> None:
    """Of all s B dA of spectral norm one, U msign(U'G) lowers the loss most, with U an orthonormal basis of B."""
    pair = pair_of(3)
    basis = torch.linalg.svd(pair.b.detach(), full_matrices=False).U
    g, by_a, _ = move(pair, lr=0.1)
    u, _, vh = torch.linalg.svd(basis.T @ g, full_matrices=False)
    steepest = -basis @ u @ vh
    assert float((by_a * steepest).sum() / (by_a.norm() * steepest.norm())) > 0.98


def test_inverse_root_whitens() -> None:
    a = draw(4, N, seed=0)
    gram = a @ a.T
    root = inverse_root(gram, 0.0)
    torch.testing.assert_close(root @ gram @ root, torch.eye(4, dtype=torch.float64))
    assert torch.isfinite(inverse_root(torch.zeros(4, 4), 1e-3)).all()
