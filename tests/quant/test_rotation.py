"""Rotations: orthogonal for any angles, Hadamard at angle zero, and exactly undone."""

from __future__ import annotations

import math

import pytest
import torch

from lowmem.errors import FormatError
from lowmem.quant.harp import round_angles
from lowmem.quant.orthogonal import base_matrix, fixed_factor
from lowmem.quant.rotation import (
    Rotation,
    Schedule,
    apply,
    apply_inverse,
    apply_stages,
    cayley,
    draw_signs,
    greedy_radices,
    kronecker_schedule,
    mixed_schedule,
    no_rotation,
    random_hadamard,
)

ORDERS = [1, 7, 64, 192, 576, 896, 1536]
SPEC = [1024, 2560, 4096, 5120, 6144, 8192, 9728, 11008, 12288, 13824, 14336, 17408, 18944, 22016, 24576, 25600, 28672]


def learned(schedule: Schedule, spread: float = 0.3, seed: int = 0) -> Rotation:
    n = schedule.order
    generator = torch.Generator().manual_seed(seed)
    thetas = [torch.randn(n // b, b * (b - 1) // 2, generator=generator) * spread for b in schedule.radices]
    rounded = [round_angles(theta) for theta in thetas]
    return Rotation(
        n, "harp", draw_signs(n, seed), schedule, tuple(a for a, _ in rounded), tuple(s for _, s in rounded)
    )


@pytest.mark.parametrize("n", [*SPEC, 51200, 1, 2, 3, 17, 43, 997])
def test_radices_multiply_to_the_order(n: int) -> None:
    assert math.prod(greedy_radices(n)) == n
    assert kronecker_schedule(n).order == n


def test_radices_of_the_paper() -> None:
    assert greedy_radices(11008) == (8, 8, 4, 43)
    assert greedy_radices(25600) == (8, 8, 8, 5, 5, 2)
    assert greedy_radices(13824) == (8, 8, 8, 3, 3, 3)


@pytest.mark.parametrize("order", [1, 2, 3, 8, 9, 12, 20, 28, 36, 43, 60, 76, 148])
def test_base_matrices_are_orthogonal(order: int) -> None:
    matrix = base_matrix(order)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(order).double(), rtol=0, atol=1e-13)


def test_awkward_orders_get_a_hadamard_factor() -> None:
    assert [fixed_factor(n) for n in (576, 1536, 192, 896, 4864)] == [36, 12, 12, 28, 76]
    for n in (576, 896):
        assert float(base_matrix(fixed_factor(n)).abs().max()) == pytest.approx(fixed_factor(n) ** -0.5)


@pytest.mark.parametrize("n", [64, 512, 4096])
def test_stages_at_angle_zero_are_the_hadamard_transform(n: int) -> None:
    schedule = kronecker_schedule(n)
    rows = torch.eye(n).double()[:: max(1, n // 64)]
    zero = [cayley(torch.zeros(n // b, b * (b - 1) // 2).double(), b) @ base_matrix(b) for b in schedule.radices]
    sylvester = base_matrix(n)[:: max(1, n // 64)]
    torch.testing.assert_close(apply_stages(rows, schedule, zero), sylvester, rtol=0, atol=1e-14)


@pytest.mark.parametrize("n", ORDERS)
@pytest.mark.parametrize("make", [kronecker_schedule, mixed_schedule])
def test_learned_rotations_are_orthogonal_and_undone(n: int, make: object) -> None:
    rotation = learned(make(n))  # type: ignore[operator]
    eye = torch.eye(n).double()
    R = apply(eye, rotation)
    torch.testing.assert_close(R @ R.T, eye, rtol=0, atol=1e-12)
    torch.testing.assert_close(apply_inverse(R, rotation), eye, rtol=0, atol=1e-12)
    single = apply(eye.float(), rotation)
    torch.testing.assert_close(single @ single.T, eye.float(), rtol=0, atol=5e-6)


def test_a_stage_follows_its_definition() -> None:
    schedule = Schedule(1, (3, 2))
    rotation = learned(schedule)
    x = torch.randn(6, generator=torch.Generator().manual_seed(1)).double()
    assert rotation.signs is not None
    z = (x * rotation.signs).clone()
    for radix, stride, kernels in zip((3, 2), (1, 3), rotation.kernels(torch.float64), strict=True):
        new = torch.zeros_like(z)
        for c in range(6 // (radix * stride)):
            for s in range(stride):
                for j in range(radix):
                    for i in range(radix):
                        k = kernels[c * stride + s]
                        new[(c * radix + j) * stride + s] += k[j, i] * z[(c * radix + i) * stride + s]
        z = new
    torch.testing.assert_close(apply(x, rotation), z)


@pytest.mark.parametrize("b", [2, 3, 5, 8, 17])
def test_cayley_has_determinant_one_and_the_right_gradient(b: int) -> None:
    theta = (torch.randn(3, b * (b - 1) // 2, generator=torch.Generator().manual_seed(b)) * 0.3).double()
    torch.testing.assert_close(torch.linalg.det(cayley(theta, b)), torch.ones(3).double())
    probe = torch.randn(b, b, generator=torch.Generator().manual_seed(9)).double()
    assert torch.autograd.gradcheck(lambda t: (cayley(t, b) * probe).sum(), (theta[:1].requires_grad_(),))


def test_no_rotation_changes_nothing_and_costs_nothing() -> None:
    x = torch.randn(2, 5)
    assert torch.equal(apply(x, no_rotation(5)), x)
    assert torch.equal(apply_inverse(x, no_rotation(5)), x)
    assert no_rotation(5).nbytes == 0


def test_bytes_are_signs_angles_and_scales() -> None:
    assert random_hadamard(576, 0).nbytes == 72
    assert learned(kronecker_schedule(576)).nbytes == 72 + (72 * 28 + 288) + 2 * (72 + 288)


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(FormatError, match="does not fit its schedule"):
        Rotation(8, "rht", draw_signs(4, 0), Schedule(1, (4,)))
