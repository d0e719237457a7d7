"""The examples that compare first-order methods: what a grid of runs says, and that both scripts run."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

KEYS = {"lora_step_ratio", "lora_peak_ratio", "lorsum_step_ratio", "lorsum_state_ratio"}


@pytest.fixture
def grid(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(repository / "examples"))
    import first_order.grid

    return first_order.grid


def test_decades_are_the_widest_run_of_neighbouring_rates_below_the_bound(grid: ModuleType) -> None:
    losses = {1e-4: [1.0], 1e-3: [1.2], 1e-2: [1.01], 1e-1: [1.0], 1.0: [1.04], 10.0: [math.inf]}
    curve = grid.Curve("task", "method", losses)
    assert grid.decades(curve, 1.05) == 2.0
    assert grid.decades(curve, 1.005) == 0.0
    assert grid.decades(curve, 1.3) == 4.0
    assert curve.best == (1e-4, (1.0, 0.0))
    assert curve.bound_of_improvement(2.0, 0.8) == pytest.approx(1.2)


def test_a_win_is_a_mean_at_most_the_rivals_each_at_its_own_best_rate(grid: ModuleType) -> None:
    found = [
        grid.Curve("a", "ours", {1.0: [1.0, 1.1, 1.2], 2.0: [9.0, 9.0, 9.0]}),
        grid.Curve("a", "theirs", {1.0: [3.0, 3.0, 3.0], 2.0: [2.0, 2.1, 2.2]}),
        grid.Curve("b", "ours", {1.0: [1.0, 1.1, 1.2]}),
        grid.Curve("b", "theirs", {1.0: [0.9, 1.0, 1.1]}),
    ]
    assert grid.wins(found, "ours", "theirs") == (1, {"a": "better", "b": "undecided"})


def run(repository: Path, script: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, str(repository / "examples" / script), "--quick"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    keys: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return keys


@pytest.mark.slow
def test_the_quick_benchmark_prints_its_keys(repository: Path) -> None:
    keys = run(repository, "bench_first_order.py")
    assert keys.keys() >= KEYS
    assert float(str(keys["lorsum_state_ratio"])) <= 0.6


@pytest.mark.slow
def test_the_quick_comparison_prints_its_keys(repository: Path) -> None:
    keys = run(repository, "compare_first_order.py")
    assert keys.keys() >= {"lorsum_lr_decades", "adamw_lr_decades", "lorsum_wins", "tasks_total"}
