"""Metrics from their definitions."""

from __future__ import annotations

import pytest
import torch

from lowmem.methods.lowrank.lorsum import Product
from lowmem.methods.lowrank.metric import (
    Second,
    average_,
    gram_diagonals,
    kfac,
    normalised,
    of_product,
    root_mean_square,
    shampoo,
)
from tests.methods.lowrank.test_lorsum import draw


@pytest.mark.parametrize("tokens", [5, 40])
def test_diagonals_of_the_gradients_grams_need_no_gradient(tokens: int) -> None:
    """L6, with fewer rows than the layer is wide, and with more; the sums are the squared norm of G."""
    x, s = draw(tokens, 9, seed=0), draw(tokens, 7, seed=1)
    gradient = s.T @ x
    out, inn = gram_diagonals(x, s)
    torch.testing.assert_close(out, (gradient @ gradient.T).diagonal(), rtol=1e-8, atol=0)
    torch.testing.assert_close(inn, (gradient.T @ gradient).diagonal(), rtol=1e-8, atol=0)
    norm = gradient.square().sum()
    assert float(out.sum()) == pytest.approx(float(norm), rel=1e-8)
    assert float(inn.sum()) == pytest.approx(float(norm), rel=1e-8)


@pytest.mark.parametrize("kind", ["kfac", "shampoo"])
def test_metric_of_a_mean_loss_does_not_depend_on_the_number_of_equal_rows(kind: str) -> None:
    """Twice the rows, each with half the gradient: the same mean loss."""
    x, s = draw(6, 5, seed=0), draw(6, 4, seed=1)

    def second(copies: int) -> Second:
        rows, gradients = x.repeat(copies, 1), s.repeat(copies, 1) / copies
        count = torch.tensor(float(len(rows)))
        if kind == "kfac":
            return kfac(gradients.square().sum(0), rows.square().sum(0), count)
        return shampoo(rows, gradients, count / copies)

    one, two = second(1), second(2)
    torch.testing.assert_close(one.inn, two.inn)
    torch.testing.assert_close(one.out, two.out)


def test_preconditioned_gradients_have_entries_of_at_most_one() -> None:
    """Cauchy-Schwarz: with power 1/2, K-FAC turns G into correlations of inputs with output gradients."""
    x, s = draw(30, 8, seed=0), draw(30, 6, seed=1) * 1e-3
    count = torch.tensor(30.0)
    metric, size = normalised(kfac(s.square().sum(0), x.square().sum(0), count), power=0.5, floor=0.0)
    scaled = (s.T @ x) / metric.out[:, None] / metric.inn / size
    assert 0.1 < float(scaled.abs().max()) <= 1.0


def test_second_moments_of_a_product_need_no_product() -> None:
    term = Product(draw(6, 3, seed=0), draw(3, 8, seed=1))
    dense = term.left @ term.right
    second = of_product(term)
    torch.testing.assert_close(second.out, dense.square().mean(1))
    torch.testing.assert_close(second.inn, dense.square().mean(0))
    torch.testing.assert_close(root_mean_square(second), dense.square().mean().sqrt())


def test_tangent_metric_divides_by_the_gradients_own_rows_and_columns() -> None:
    """With power 1/2 a gradient of rank one becomes signs: that is Adafactor's first step."""
    left, right = draw(6, 1, seed=0), draw(1, 8, seed=1)
    second = of_product(Product(left, right))
    metric, _ = normalised(second, power=0.5, floor=0.0)
    scaled = (left @ right) / metric.out[:, None] / metric.inn
    torch.testing.assert_close(scaled.abs(), scaled.abs().mean().expand_as(scaled))


def test_metric_has_mean_one_and_survives_a_layer_without_gradients() -> None:
    metric, size = normalised(Second(draw(5, seed=0).abs(), draw(3, seed=1).abs()), power=0.5, floor=1e-3)
    assert float(metric.out.mean()) == pytest.approx(1.0)
    assert float(metric.inn.mean()) == pytest.approx(1.0)
    silent, size = normalised(Second(torch.zeros(5), torch.ones(3)), power=0.5, floor=1e-3)
    assert torch.equal(silent.out, torch.ones(5))
    assert float(size) > 0


def test_average_has_no_bias_towards_its_start() -> None:
    state = torch.zeros(3)
    for t in range(1, 5):
        torch.testing.assert_close(average_(state, torch.full((3,), 2.0), decay=0.9, t=t), torch.full((3,), 2.0))
