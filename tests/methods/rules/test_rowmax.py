"""Row O2: the steps of RowMax and ColumnMax are steepest descent in the norms that they are named after."""

from __future__ import annotations

import pytest
import torch

from lowmem.methods.rules.rowmax import RowMax, Side, largest_entries


def matrix() -> torch.Tensor:
    m = torch.randn(6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    m[2, 3] = -m[2].abs().max() * 1.5
    m[2, 7] = -m[2, 3]  # two largest entries in a row
    m[:, 1] = 0
    return m


@pytest.mark.parametrize(("side", "dim", "order"), [("row", 1, torch.inf), ("column", 0, 1)])
def test_the_step_attains_the_dual_norm_and_has_norm_one(side: Side, dim: int, order: float) -> None:
    m = matrix()
    step = largest_entries(m, side)
    assert float((m * step).sum()) == pytest.approx(float(m.abs().amax(dim).sum()), abs=1e-10)
    assert float(torch.linalg.matrix_norm(step, order)) == pytest.approx(1.0, abs=1e-10)
    assert torch.equal(largest_entries(-3 * m, side), -step)


def test_no_matrix_of_that_norm_has_a_larger_inner_product() -> None:
    """Against random ones, each scaled to norm one."""
    m, best = matrix(), float(matrix().abs().amax(1).sum())
    for seed in range(50):
        other = torch.randn(m.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        other /= torch.linalg.matrix_norm(other, torch.inf)
        assert float((m * other).sum()) <= best


def test_equal_entries_share_the_step_and_zero_rows_stay() -> None:
    step = largest_entries(torch.tensor([[2.0, -2.0, 1.0], [0.0, 0.0, 0.0]]), "row")
    assert step.tolist() == [[0.5, -0.5, 0.0], [0.0, 0.0, 0.0]]


def test_one_entry_of_each_row_moves_by_the_learning_rate() -> None:
    weight, rule = torch.zeros(6, 9), RowMax()
    rule.update_(weight, matrix().float(), rule.init(weight), lr=0.1, t=1, rounding_key=0)
    assert (weight != 0).sum(1).tolist() == [1, 1, 2, 1, 1, 1]
    torch.testing.assert_close(weight.abs().sum(1), torch.full((6,), 0.1))
