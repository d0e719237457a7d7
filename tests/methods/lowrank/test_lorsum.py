"""The LoRSum primitive against dense linear algebra, in fp64: rows L1 to L5 of the specification."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lowmem.methods.lowrank.lorsum import (
    AtIterate,
    Damping,
    Factors,
    Metric,
    Product,
    Sum,
    gauss_seidel,
    jacobi,
    solve_a,
    solve_b,
    tangent,
    tangent_square,
)

M, N, RANK, TOKENS = 9, 7, 3, 20
NONE = Damping()


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Problem:
    """Random factors and a gradient G = s' x of more rows than the rank."""

    def __init__(self, *, seed: int = 0, rank: int = RANK) -> None:
        self.start = Factors(draw(rank, N, seed=seed), draw(M, rank, seed=seed + 1))
        self.term = Product(draw(M, TOKENS, seed=seed + 2) / TOKENS, draw(TOKENS, N, seed=seed + 3))
        self.gradient = self.term.left @ self.term.right
        self.plain = Metric.plain(self.gradient)
        self.metric = Metric(draw(M, seed=seed + 4).abs() + 0.1, draw(N, seed=seed + 5).abs() + 0.1)

    @property
    def known(self) -> AtIterate:
        """What autograd tells."""
        return AtIterate(self.start.b.T @ self.gradient, self.gradient @ self.start.a.T)


def product(factors: Factors) -> Tensor:
    return factors.b @ factors.a


def truncated(matrix: Tensor, rank: int) -> Tensor:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def close(left: Tensor, right: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=tolerance)


def test_full_rank_makes_the_exact_gradient_step_in_one_sweep() -> None:
    """L1, with s = alpha / r: the change of s B A is -lr G."""
    problem = Problem(rank=N)
    scale, lr = 2.0, 0.3
    terms: Sum = [(-lr / scale, problem.term)]
    moved = gauss_seidel(problem.start, terms, problem.plain, NONE)
    close(scale * product(moved), scale * product(problem.start) - lr * problem.gradient, 1e-10)


def test_many_sweeps_end_at_the_truncated_svd() -> None:
    """L2."""
    problem = Problem()
    target = product(problem.start) - 0.3 * problem.gradient
    moved = gauss_seidel(problem.start, [(-0.3, problem.term)], problem.plain, NONE, sweeps=64)
    close(product(moved), truncated(target, RANK), 1e-8)


def test_jacobi_without_damping_is_scaled_gradient_descent() -> None:
    """L3."""
    problem, lr = Problem(), 0.1
    a, b = problem.start.a, problem.start.b
    moved = jacobi(problem.start, [(-lr, problem.known)], problem.plain, NONE)
    close(moved.a, a - lr * torch.linalg.inv(b.T @ b) @ problem.known.out, 1e-10)
    close(moved.b, b - lr * problem.known.inn @ torch.linalg.inv(a @ a.T), 1e-10)


def projectors(factors: Factors) -> tuple[Tensor, Tensor]:
    a, b = factors.a, factors.b
    return b @ torch.linalg.pinv(b), torch.linalg.pinv(a) @ a


def test_small_steps_move_along_the_tangent_projection_of_the_gradient() -> None:
    """L3: the error of the first-order change of B A falls linearly with lr."""
    problem = Problem()
    p, q = projectors(problem.start)
    wanted = p @ problem.gradient + (problem.gradient - p @ problem.gradient) @ q

    def error(lr: float) -> float:
        moved = gauss_seidel(problem.start, [(-lr, problem.term)], problem.plain, NONE)
        return float(((product(problem.start) - product(moved)) / lr - wanted).norm())

    ratio = error(1e-4) / error(1e-5)
    assert ratio == pytest.approx(10, rel=0.1)
    close(_dense(tangent(problem.start, problem.known, NONE)), wanted, 1e-10)
    close(tangent_square(problem.start, problem.known, NONE), wanted.square().sum(), 1e-10)


def test_jacobi_counts_the_common_part_of_both_steps_twice() -> None:
    problem, lr = Problem(), 1e-7
    p, q = projectors(problem.start)
    moved = jacobi(problem.start, [(-lr, problem.known)], problem.plain, NONE)
    change = (product(problem.start) - product(moved)) / lr
    close(change, p @ problem.gradient + problem.gradient @ q, 1e-5)


@pytest.mark.parametrize("step", [jacobi, gauss_seidel])
def test_without_damping_another_basis_of_the_factors_gives_the_same_product(step: object) -> None:
    """L4."""
    assert step in (jacobi, gauss_seidel)
    problem = Problem()
    turn = draw(RANK, RANK, seed=9)
    other = Factors(turn @ problem.start.a, problem.start.b @ torch.linalg.inv(turn))
    move = jacobi if step is jacobi else gauss_seidel
    left = move(problem.start, [(-0.2, problem.term)], problem.metric, NONE)
    right = move(other, [(-0.2, problem.term)], problem.metric, NONE)
    close(product(left), product(right), 1e-9)


def test_relative_damping_does_not_see_how_scale_is_shared_between_the_factors() -> None:
    problem = Problem()
    other = Factors(problem.start.a * 10, problem.start.b / 10)
    moved = []
    for start in (problem.start, other):
        damping = Damping(relative=0.7)
        moved.append(product(gauss_seidel(start, [(-0.2, problem.term)], problem.metric, damping)))
    close(moved[0], moved[1], 1e-9)


@pytest.mark.parametrize("damping", [1e-3, 0.1, 3.0])
def test_no_half_step_raises_the_damped_objective(damping: float) -> None:
    """L4."""
    problem, now = Problem(), Problem().start
    both = Damping(damping, damping)
    values = [objective(problem, now, damping)]
    for _ in range(5):
        a = solve_a(problem.start, now.b, [(-1.0, problem.term)], problem.metric, both)
        values.append(objective(problem, Factors(a, now.b), damping))
        now = Factors(a, solve_b(problem.start, a, [(-1.0, problem.term)], problem.metric, both))
        values.append(objective(problem, now, damping))
    assert all(after <= before + 1e-12 for before, after in pairwise(values))
    assert values[-1] < values[0]


def objective(problem: Problem, now: Factors, damping: float) -> float:
    """1/2 tr(E'RE L) and the pull towards the start, which is measured in the metric of its side."""
    metric = problem.metric
    target = product(problem.start) - problem.gradient / metric.out[:, None] / metric.inn
    distance = ((product(now) - target).square() * metric.out[:, None] * metric.inn).sum()
    pull_a = ((now.a - problem.start.a).square() * metric.inn).sum()
    pull_b = ((now.b - problem.start.b).square() * metric.out[:, None]).sum()
    return float(distance + damping * (pull_a + pull_b)) / 2


@pytest.mark.parametrize("step", ["jacobi", "gauss_seidel"])
def test_the_usual_start_with_b_zero_moves_b_alone(step: str) -> None:
    """L4."""
    problem = Problem()
    start, damping = Factors(problem.start.a, torch.zeros(M, RANK, dtype=torch.float64)), Damping(0.5, 0.5)
    terms: Sum = [(-0.1, problem.term)]
    moved = (jacobi if step == "jacobi" else gauss_seidel)(start, terms, problem.plain, damping)
    a = start.a
    assert torch.equal(moved.a, a)
    wanted = -0.1 * problem.gradient @ a.T @ torch.linalg.inv(a @ a.T + 0.5 * torch.eye(RANK, dtype=torch.float64))
    close(moved.b, wanted, 1e-12)


def test_the_metric_is_stationary_after_a_half_step_and_its_optimum_is_the_weighted_svd() -> None:
    """L5."""
    problem, metric = Problem(), Problem().metric
    target = product(problem.start) - problem.gradient / metric.out[:, None] / metric.inn
    a = solve_a(problem.start, problem.start.b, [(-1.0, problem.term)], metric, NONE)
    error = (problem.start.b @ a - target) * metric.out[:, None] * metric.inn
    close(problem.start.b.T @ error, torch.zeros(RANK, N, dtype=torch.float64), 1e-10)
    moved = gauss_seidel(problem.start, [(-1.0, problem.term)], metric, NONE, sweeps=64)
    root_out, root_inn = metric.out.sqrt()[:, None], metric.inn.sqrt()
    close(product(moved) * root_out * root_inn, truncated(root_out * target * root_inn, RANK), 1e-8)


def test_coefficients_of_zero_leave_the_factors_bit_for_bit() -> None:
    problem = Problem()
    for moved in (
        jacobi(problem.start, [(0.0, problem.term)], problem.metric, Damping(1e-9, 1e-9)),
        gauss_seidel(problem.start, [(0.0, problem.term)], problem.metric, Damping(1e-9, 1e-9), sweeps=3),
    ):
        assert torch.equal(moved.a, problem.start.a)
        assert torch.equal(moved.b, problem.start.b)


def test_momentum_is_exact_while_the_gradients_stay_in_one_subspace_of_its_rank() -> None:
    """L6: M <- 0.9 M + 0.1 G, compressed to rank r after every step."""
    left, right = draw(M, RANK, seed=1), draw(RANK, N, seed=2)
    held, dense = Factors(draw(RANK, N, seed=3), torch.zeros(M, RANK, dtype=torch.float64)), torch.zeros(M, N).double()
    for step in range(30):
        gradient = Product(left @ draw(RANK, RANK, seed=10 + step), right)
        dense = 0.9 * dense + 0.1 * _dense(gradient)
        terms: Sum = [(-0.1, Product(held.b, held.a)), (0.1, gradient)]
        damping = Damping(1e-20, 1e-20, relative=1e-12)
        held = gauss_seidel(held, terms, Metric.plain(dense), damping, sweeps=2)
    assert float((product(held) - dense).norm() / dense.norm()) < 1e-6


def _dense(term: Product) -> Tensor:
    return term.left @ term.right
