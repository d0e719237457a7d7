from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from lowmem.cli import render
from lowmem.cli.reference import reference


@dataclass(frozen=True)
class Inner:
    path: Path
    value: float


def test_json_holds_dataclasses_paths_and_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    render.result_json({"a": (Inner(Path("x/y"), math.nan), Inner(Path("z"), 0.5)), "b": math.inf, "c": True})
    assert json.loads(capsys.readouterr().out) == {
        "a": [{"path": "x/y", "value": None}, {"path": "z", "value": 0.5}],
        "b": None,
        "c": True,
    }


def test_a_table_aligns_numbers_and_wraps_nothing_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    render.table(["name", "value"], [["[x]", "1.5"], ["y" * 150, "10"]])
    assert capsys.readouterr().out.splitlines() == [
        "name" + " " * 148 + "value",
        "[x]" + " " * 151 + "1.5",
        "y" * 150 + " " * 5 + "10",
    ]


def test_metrics_that_were_not_measured_before_have_no_change(capsys: pytest.CaptureFixture[str]) -> None:
    render.metrics({"dev": {"loss": 2.0}}, {"dev": {"loss": 1.0, "perplexity": 12345.0}})
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1:] == [["dev", "loss", "2.0000", "1.0000", "-1"], ["dev", "perplexity", "-", "12,345", "-"]]


def test_the_reference_in_docs_is_fresh(repository: Path) -> None:
    """If this fails: python -m lowmem.cli.reference > docs/cli.md"""
    assert (repository / "docs" / "cli.md").read_text() == reference() + "\n" * (not reference().endswith("\n"))
