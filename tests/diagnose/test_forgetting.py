from __future__ import annotations

import math
from typing import Any

import pytest

from lowmem.diagnose.forgetting import Cell, divergence, read_points, summarize
from lowmem.diagnose.pareto import Point
from lowmem.diagnose.updates import INPUTS
from lowmem.errors import FormatError
from lowmem.methods.build import build_method
from lowmem.models.loss import ModelLoss
from tests.tiny import lm_batch, run_config, tiny_model


def evaluation(moment: str, name: str, step: int, **metrics: float) -> dict[str, Any]:
    return {"event": "EvalDone", "split": f"{moment}:{name}", "step": step, "metrics": metrics}


BEFORE = [evaluation("before", name, 0, loss=loss, hits=0.1) for name, loss in (("new", 5.0), ("a", 1.0), ("b", 2.0))]
DURING = [evaluation("during", name, 4, loss=loss, hits=0.3) for name, loss in (("new", 4.0), ("a", 1.5), ("b", 2.1))]
AFTER = [evaluation("after", name, 8, loss=loss, hits=0.2) for name, loss in (("new", 3.0), ("a", 2.0), ("b", 2.0))]


def test_each_evaluation_is_a_point_of_learning_and_mean_forgetting() -> None:
    found = read_points([*BEFORE, {"event": "StepDone"}, *DURING, *AFTER], metric="loss", maximize=False)
    assert [(p.learning, p.forgetting) for p in found] == [(1.0, pytest.approx(0.3)), (2.0, pytest.approx(0.5))]
    better = read_points([*BEFORE, *DURING, *AFTER], metric="hits", maximize=True)
    assert [p.learning for p in better] == [pytest.approx(0.2), pytest.approx(0.1)]


def test_what_is_not_finite_is_no_point() -> None:
    lost = [evaluation("after", name, 8, loss=math.nan) for name in ("new", "a", "b")]
    assert len(read_points([*BEFORE, *DURING, *lost], metric="loss", maximize=False)) == 1


@pytest.mark.parametrize("records", [[], BEFORE, [BEFORE[0], AFTER[0]]], ids=["nothing", "unfinished", "one dataset"])
def test_a_run_without_both_evaluations_is_refused(records: list[dict[str, Any]]) -> None:
    with pytest.raises(FormatError, match="has no evaluation of two datasets before and after training"):
        read_points(records, metric="loss", maximize=False)


def test_at_rate_zero_nothing_is_forgotten_and_nothing_learned() -> None:
    """Row O3: exactly, in the outputs."""
    base, tuned = tiny_model(), tiny_model()
    method = build_method(run_config(method={"kind": "full"}), tuned)
    method.step(ModelLoss(tuned), [lm_batch()], lr=0.0, step=0)
    assert divergence(base, tuned, [lm_batch(seed=1)]) == 0.0
    assert float(ModelLoss(tuned)(lm_batch()).total.detach()) == float(ModelLoss(base)(lm_batch()).total.detach())
    method.step(ModelLoss(tuned), [lm_batch()], lr=0.1, step=1)
    assert divergence(base, tuned, [lm_batch(seed=1)]) > 1e-4


def cell(arm: str, rate: float, seed: int, *points: tuple[float, float], bound: float = 0.0) -> Cell:
    updates = dict.fromkeys((*INPUTS, "frobenius", "stable_rank"), 1.0)
    return Cell(arm, rate, seed, tuple(Point(*p) for p in points), 0.0, dict.fromkeys(INPUTS, bound), updates)


def test_arms_are_compared_at_learning_that_all_reach() -> None:
    cells = [
        cell("a", 1e-3, 0, (1.0, 0.1), (2.0, 0.4), bound=1.0),
        cell("a", 1e-3, 1, (2.0, 0.2), bound=0.5),
        cell("b", 1e-4, 0, (1.0, 0.3), bound=0.8),
        cell("b", 1e-3, 0, (4.0, 0.9), bound=9.0),
        cell("b", 1e-3, 1, (4.0, 1.7), bound=10.0),
    ]
    found = summarize(cells, 2)
    assert found.levels == (1.0, 2.0)
    a, b = found.arms
    assert (a.arm, a.cells, a.most_learned, b.cells) == ("a", 2, 2.0, 3)
    assert a.matched[1] is not None
    assert (a.matched[1].mean, a.matched[1].seeds) == (pytest.approx(0.3), 2)
    assert a.matched[1].std == pytest.approx(math.sqrt(0.02))
    assert b.matched[0] is not None
    assert b.matched[0].mean == pytest.approx((0.3 + 0.425) / 2)
    assert a.hypervolume.mean > 0
    assert found.correlations["spectral"] == pytest.approx(1.0), "the bound orders these runs as forgetting does"


def test_an_arm_that_learns_nothing_leaves_nothing_to_compare() -> None:
    found = summarize([cell("a", 1e-3, 0, (1.0, 0.1)), cell("b", 1e-9, 0, (0.0, 0.0))], 3)
    assert found.levels == ()
    assert [arm.matched for arm in found.arms] == [(), ()]
