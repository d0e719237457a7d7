from __future__ import annotations

import pytest
import torch

from lowmem.methods.projected.basis import (
    basis_error,
    coordinates,
    leading_basis,
    move_,
    random_basis,
    shorter_first,
    sketch_matrix,
    stored,
    subtract_projection_,
)
from tests.methods.projected.problem import gaussian

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["full rank", "rank one", "zero", "ill scaled"])
def test_a_basis_is_orthonormal_whatever_the_sketch(kind: str) -> None:
    sketch = {
        "full rank": gaussian(40, 16),
        "rank one": gaussian(40, 1) @ gaussian(1, 16),
        "zero": torch.zeros(40, 16),
        "ill scaled": gaussian(40, 16) * torch.logspace(-12, 6, 16),
    }[kind]
    assert float(basis_error(leading_basis(sketch, 8))) < 1e-5
    assert float(basis_error(random_basis(40, 8, key=1, device=CPU))) < 1e-5


def test_a_square_basis_holds_everything() -> None:
    basis, g = random_basis(12, 12, key=1, device=CPU), gaussian(12, 30)
    assert torch.allclose(basis @ coordinates(basis, g), g, atol=1e-5)
    assert float(subtract_projection_(g.clone(), basis, coordinates(basis, g)).abs().max()) < 1e-5


def test_the_sketch_finds_what_the_svd_finds_and_momentum_sharpens_it() -> None:
    u, v = torch.linalg.qr(gaussian(60, 60, seed=1))[0], torch.linalg.qr(gaussian(90, 60, seed=2))[0]
    g = u @ torch.diag(torch.arange(1, 61).float() ** -0.5) @ v.T  # a spectrum that falls slowly
    best = float((u[:, :8].T @ g).norm())

    def captured(momentum: torch.Tensor | None, key: int) -> tuple[float, torch.Tensor]:
        sketch = g @ sketch_matrix(momentum, long=90, width=16, key=key, device=CPU)
        basis = leading_basis(sketch, 8)
        return float(coordinates(basis, g).norm()) / best, coordinates(basis, g)

    first, coords = captured(None, 1)
    assert first > 0.75
    for key in range(2, 6):
        share, coords = captured(coords, key)
    assert share > max(first, 0.95)


def test_sums_over_micro_batches_are_the_sketch_of_the_sum() -> None:
    left, right = gaussian(20, 30, seed=1), gaussian(20, 30, seed=2)
    omega = sketch_matrix(gaussian(4, 30), long=30, width=12, key=3, device=CPU)
    torch.testing.assert_close(left @ omega + right @ omega, (left + right) @ omega)


def test_no_momentum_yet_gives_a_random_sketch() -> None:
    omega = sketch_matrix(torch.zeros(4, 30), long=30, width=12, key=3, device=CPU)
    assert torch.linalg.matrix_rank(omega) == 12
    assert torch.isfinite(omega).all()


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_half_precision_weights_move_on_average_as_fp32_weights(shape: tuple[int, int]) -> None:
    weight = gaussian(*shape).bfloat16()
    basis, step = random_basis(6, 3, key=1, device=CPU), 1e-3 * gaussian(3, 10, seed=3)
    exact = weight.float()
    move_(shorter_first(exact), basis, step, keep=0.999, key=0)
    total = torch.zeros(shape)
    for key in range(400):
        moved = weight.clone()
        move_(shorter_first(moved), basis, step, keep=0.999, key=key)
        total += moved.float()
    assert float((total / 400 - exact).abs().max()) < 4 * 2.0**-7 / 400**0.5


def test_bases_in_bf16_are_orthonormal_to_its_precision() -> None:
    basis = stored(random_basis(64, 8, key=1, device=CPU), torch.bfloat16, 7)
    assert basis.dtype == torch.bfloat16
    assert float(basis_error(basis)) < 8e-3
