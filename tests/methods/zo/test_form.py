from __future__ import annotations

import pytest
import torch

from lowmem.kernels.dispatch import direction
from lowmem.kernels.noise import LowRank
from lowmem.methods.rules.orthogonal import msign
from lowmem.methods.zo.form import Form, descend_along_, top_singular

TERMS = [(11, 0.5), (12, -0.25), (13, 2.0)]


def total(weight: torch.Tensor, kind: str | LowRank) -> torch.Tensor:
    return sum((direction(weight.shape, key, kind) * coef for key, coef in TERMS), torch.zeros(weight.shape))  # type: ignore[arg-type]


@pytest.mark.parametrize("hidden", [True, False])
def test_sign_moves_every_entry_by_the_length_in_the_sum_s_direction(hidden: bool) -> None:
    weight = torch.zeros(6, 130)
    descend_along_(weight, TERMS, "rademacher", Form("sign", 0.25), rounding_key=1, hidden=hidden)
    assert torch.equal(weight, -0.25 * total(weight, "rademacher").sign())


def test_spectral_moves_a_hidden_matrix_by_equal_singular_values_and_a_vocabulary_by_sign() -> None:
    hidden, vocabulary = torch.zeros(12, 20), torch.zeros(12, 20)
    form = Form("spectral", 0.5)
    descend_along_(hidden, TERMS, LowRank(2), form, rounding_key=1, hidden=True)
    descend_along_(vocabulary, TERMS, LowRank(2), form, rounding_key=1, hidden=False)
    g = total(hidden, LowRank(2))
    torch.testing.assert_close(hidden, -0.5 * 0.2 * 20**0.5 * msign(g))
    assert float((hidden * g).sum()) < 0
    assert torch.linalg.matrix_rank(hidden, atol=1e-4) == 6  # three directions of rank two
    assert torch.equal(vocabulary, -0.5 * g.sign())


def test_top_k_keeps_the_largest_singular_directions_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 5, generator=generator)).Q for n in (30, 20))
    matrix = left @ torch.diag(torch.tensor([9.0, 6.0, 0.3, 0.2, 0.1])) @ right.T
    point = top_singular(matrix, 2, key=5)
    values = torch.linalg.svdvals(point)
    assert values[1] > 0.65
    assert values[2] < 1e-4
    inside = left[:, :2] @ left[:, :2].T @ point @ right[:, :2] @ right[:, :2].T
    torch.testing.assert_close(point, inside, atol=1e-3, rtol=0)


def test_top_k_beyond_the_rank_is_the_whole_matrix() -> None:
    matrix = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(top_singular(matrix, 50, key=1), msign(matrix), atol=1e-3, rtol=1e-3)


def test_low_precision_rounds_at_random_and_repeats() -> None:
    once, again = (torch.full((40, 64), 0.5, dtype=torch.bfloat16) for _ in range(2))
    for weight in (once, again):
        descend_along_(weight, TERMS, "gaussian", Form("sign", 2**-12), rounding_key=3, hidden=True)
    assert torch.equal(once, again)
    moved = (once != 0.5).float().mean()
    assert 0.05 < float(moved) < 0.95  # a step below the spacing of bf16 moves some entries by a whole spacing
