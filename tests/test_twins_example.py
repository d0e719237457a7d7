"""What `compare_twins.py` makes of finished runs."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from lowmem.diagnose.pareto import Point


@pytest.fixture
def twins(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(repository / "examples"))
    import compare_twins

    return compare_twins


def test_ways_are_compared_at_the_most_that_every_seed_learns(twins: ModuleType) -> None:
    points = {
        "adamw": {0: [Point(2.0, 0.2)], 1: [Point(4.0, 0.4), Point(1.0, 0.9)]},
        "muon": {0: [Point(3.0, 0.6)], 1: [Point(3.0, 0.9)]},
        "lora": {0: [Point(5.0, 0.1)], 1: [Point(5.0, 0.1)]},
    }
    keys, rows = twins.matched("adamw", points)
    assert keys["adamw_adamw_forgetting"] == pytest.approx(0.2)
    assert keys["adamw_muon_forgetting"] == pytest.approx(0.5)
    assert (keys["adamw_own_forgets_less"], keys["adamw_verdict"]) == (True, "better")
    assert [row[1] for row in rows] == ["adamw", "muon", "lora"]
    mirrored, _ = twins.matched("muon", points)
    assert (mirrored["muon_own_forgets_less"], mirrored["muon_verdict"]) == (False, "worse")
    found = twins.overall(keys | mirrored | {"adamw_loss_before": 3.0, "muon_loss_before": 3.5}, ["adamw", "muon"])
    assert found == {"diagonal_wins": 1, "diagonal_decided": 1, "twins": 2, "gap_before": 0.5}


def test_a_way_that_learns_nothing_decides_nothing(twins: ModuleType) -> None:
    points = {"adamw": {0: [Point(1.0, 0.1)]}, "muon": {0: []}}
    keys, _ = twins.matched("adamw", points)
    assert keys == {"adamw_own_forgets_less": None}
