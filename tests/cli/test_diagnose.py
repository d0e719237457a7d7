from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowmem.diagnose.forgetting import ArmSummary, Spread, Summary
from lowmem.events import Notice, Sink
from lowmem.jobs.diagnose import ForgettingReport


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the job was asked for; `failed` is what it answers."""
    seen: dict[str, Any] = {"failed": {}}

    def forgetting(config: Any, *, sink: Sink, **options: Any) -> ForgettingReport:
        seen.update(config=config, **options)
        sink(Notice("measuring a"))
        area = Spread(1.0, 0.1, 2)
        arm = ArmSummary("adamw", 2, 1.5, (Spread(0.25, 0.03, 2), None), area)
        summary = Summary((0.5, 1.0), (arm,), {"spectral": None})
        return ForgettingReport(Path("runs/x/forgetting.html"), summary, [], {}, seen["failed"])

    monkeypatch.setattr("lowmem.jobs.diagnose.forgetting", forgetting)
    return seen


def test_forgetting_shows_what_is_forgotten_at_equal_learning(run: Callable[..., Any], asked: dict[str, Any]) -> None:
    result = run("diagnose", "forgetting", "tiny-forgetting", "max_steps=3", "--max-parallel", "2")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "arm    runs  most learned  forgotten at 0.5  forgotten at 1",
        "adamw     2           1.5  0.25 ± 0.03                    -",
    ]
    assert "report: runs/x/forgetting.html" in result.stderr
    assert (asked["config"].max_steps, asked["max_parallel"]) == (3, 2)


def test_runs_that_failed_are_named_and_end_with_1(run: Callable[..., Any], asked: dict[str, Any]) -> None:
    asked["failed"] = {"adamw-1": "out of memory"}
    result = run("diagnose", "forgetting", "tiny-forgetting", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["summary"]["levels"] == [0.5, 1.0]


def test_an_unknown_config_is_refused(run: Callable[..., Any]) -> None:
    result = run("diagnose", "forgetting", "tiny-forgeting")
    assert result.exit_code == 2
    assert "did you mean tiny-forgetting?" in result.stderr
