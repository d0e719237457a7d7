from __future__ import annotations

import math

import pytest
import torch

from lowmem.methods.rules.orthogonal import Scale, msign, scale_of

SHAPES = [(8, 8), (24, 6), (6, 24)]


def matrix(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """Singular values between 0.1 and 1, so that the exact polar factor is well defined."""
    raw = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(raw, full_matrices=False)
    return u @ torch.diag(torch.linspace(1, 0.1, len(s), dtype=torch.float64)) @ vh


@pytest.mark.parametrize("shape", SHAPES)
def test_msign_keeps_singular_vectors_and_brings_singular_values_near_one(shape: tuple[int, int]) -> None:
    m = matrix(shape)
    u, _, vh = torch.linalg.svd(m, full_matrices=False)
    inside = u.T @ msign(m).double() @ vh.T
    assert float((inside - torch.diag(inside.diagonal())).abs().max()) < 1e-5
    assert float(inside.diagonal().min()) > 0.65
    assert float(inside.diagonal().max()) < 1.2
    assert float((msign(m).double() - u @ inside @ vh).abs().max()) < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_inner_product_with_msign_is_the_nuclear_norm(shape: tuple[int, int]) -> None:
    m = matrix(shape)
    nuclear = float(torch.linalg.svdvals(m).sum())
    assert float((m * msign(m)).sum()) == pytest.approx(nuclear, rel=0.25)


def test_msign_does_not_see_the_scale_and_leaves_its_argument_alone() -> None:
    m = matrix((24, 6)).float()
    before = m.clone()
    torch.testing.assert_close(msign(1000 * m), msign(m), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(msign(-m), -msign(m), rtol=0, atol=0)
    torch.testing.assert_close(msign(m.T), msign(m).T)
    assert torch.equal(m, before)


@pytest.mark.parametrize("steps", [1, 2, 5, 8])
def test_a_long_matrix_is_iterated_through_its_gram_to_the_same_result(steps: int) -> None:
    m = matrix((6, 24))
    m[5] = m[4] * (1 + 1e-3)  # nearly singular: small directions must survive the square
    x = m / m.norm()
    for _ in range(steps):  # the quintic as it is written, in fp64
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    torch.testing.assert_close(msign(m.float(), steps).double(), x, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(msign(m.T.float(), steps).double(), x.T, rtol=1e-3, atol=1e-3)


def test_msign_of_zero_is_zero_and_of_low_rank_stays_low_rank() -> None:
    assert not msign(torch.zeros(4, 3)).any()
    thin = matrix((24, 6))[:, :2] @ matrix((6, 24))[:2]
    values = torch.linalg.svdvals(msign(thin).double())
    assert float(values[1]) > 0.6
    assert float(values[2]) < 1e-4


@pytest.mark.parametrize(("scale", "expected"), [("rms", 0.2 * math.sqrt(24)), ("aspect", 2.0), ("operator", 2.0)])
def test_scale_of_a_tall_matrix(scale: Scale, expected: float) -> None:
    assert scale_of(torch.zeros(24, 6), scale) == pytest.approx(expected)


@pytest.mark.parametrize(("scale", "expected"), [("rms", 0.2 * math.sqrt(24)), ("aspect", 1.0), ("operator", 0.5)])
def test_scale_of_a_wide_matrix(scale: Scale, expected: float) -> None:
    assert scale_of(torch.zeros(6, 24), scale) == pytest.approx(expected)


def test_rms_scale_gives_entries_of_the_size_of_adamws() -> None:
    wide = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    entries = msign(wide) * scale_of(wide, "rms")
    assert float(entries.square().mean().sqrt()) == pytest.approx(0.2, rel=0.2)
