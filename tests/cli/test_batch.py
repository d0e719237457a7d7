from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lowmem.cli.batch_view import LiveView, PlainView, counts, numbers, row, said
from tests.batch.batches import entry, write

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_batch_runs_is_shown_and_fails_with_exit_code_1(run: Run, tmp_path: Path) -> None:
    text = """
jobs:
  a: {command: 'echo working; echo "{\\"loss\\": 0.5}"'}
  b: {command: "echo error: no >&2; exit 9"}
"""
    path = str(write(tmp_path, text))
    result = run("batch", "run", path)
    assert result.exit_code == 1
    assert "loss 0.5" in result.stdout
    assert "2 jobs: 1 done, 1 failed" in result.stdout
    assert "b: failed  0s  exit code 9: error: no" in result.stderr
    assert f"lowmem batch retry {path} --failed" in result.stderr
    shown = json.loads(run("batch", "status", path, "--json").stdout)
    assert [(job["name"], job["state"]) for job in shown] == [("a", "done"), ("b", "failed")]
    assert "exit code 9" in run("batch", "status", path, "--watch").stdout
    assert run("batch", "logs", path, "a", "-f").stdout.startswith("working\n")
    assert run("batch", "retry", path, "--failed").stderr.startswith("waiting again: b; next: lowmem batch run")
    assert run("batch", "cancel", path, "b").stderr == "cancelled: b\n"
    assert run("batch", "cancel", path).exit_code == 2


def test_a_dry_run_shows_the_plan_and_starts_nothing(run: Run, tmp_path: Path) -> None:
    path = str(write(tmp_path, "jobs: {a: {command: touch ran, memory: 1GiB}, b: {command: x, after: a}}"))
    result = run("batch", "run", path, "--dry-run", "--budget", "512MiB", "--partly")
    assert result.exit_code == 0
    assert "does not fit" in result.stdout
    assert run("batch", "run", path, "--dry-run", "--budget", "512MiB").exit_code == 3
    assert json.loads(run("batch", "run", path, "--dry-run", "--json").stdout)[1]["after"] == ["a"]
    assert not (tmp_path / "ran").exists()


def test_an_option_that_a_verb_does_not_have_is_refused_before_anything_starts(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path, "jobs: {a: {eval: tiny-reasoner, args: {limitt: 4}, memory: 1GiB}}")
    result = run("batch", "run", str(path))
    assert result.exit_code == 2
    assert "error: a: eval: No such option: --limitt" in result.stderr


def test_init_prints_a_batch(run: Run, tmp_path: Path) -> None:
    assert run("init", "--batch").stdout.startswith("jobs:")
    assert "lowmem batch run jobs.yaml" in run("init", "--batch", "-o", "jobs.yaml").stderr
    refused = run("init", "--batch", "--method", "mezo")
    assert refused.exit_code == 2
    assert "--batch prints jobs; --method, --model and" in " ".join(refused.stderr.replace("│", " ").split())


def test_a_row_says_what_people_ask_first() -> None:
    done = entry("t", kind="train", state="done", attempts=2, seconds=61.0, peak_bytes=2**30, predicted_bytes=2**31)
    result = {"steps": 3, "before": {"d": {"loss": 2.0}}, "after": {"d": {"loss": 1.5, "ok": True}}}
    done = entry(**{**vars(done), "result": result})
    assert row(done) == ["t", "done (2 attempts)", "1m 01s", "1.00 GiB", "2.00 GiB", "loss 1.5"]
    assert numbers(entry(kind="eval", result={"a": {"loss": 1.0}, "b": {"loss": 2.0}})) == {"a/loss": 1, "b/loss": 2}
    assert said(entry(error="first\nsecond")) == "first"
    assert counts([done, done, entry()]) == "3 jobs: 2 done, 1 waiting"


def test_a_running_training_says_how_far_it_is(tmp_path: Path) -> None:
    running = entry("t", kind="train", state="running", folder=str(tmp_path), attempts=1, started=0.0)
    assert said(running) == ""
    records = [
        {"event": "RunStarted", "total_steps": 40},
        {"event": "StepDone", "step": 7, "loss": 1.25, "tokens_per_second": 1234.5, "peak_bytes": 5},
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "metrics.jsonl").write_text(lines + '{"event": "StepDone", "st')
    assert said(running) == "step 7/40, loss 1.2500, 1,234 tok/s"


def test_changes_are_lines_in_a_log_and_a_table_on_a_terminal() -> None:
    log, screen = io.StringIO(), io.StringIO()
    plain = PlainView(log)
    before, after = [entry("a"), entry("b")], [entry("a", state="running", attempts=1, started=0.0), entry("b")]
    for entries in (before, after, after):
        plain(entries)
    assert log.getvalue() == "a: running\n"
    with LiveView(Console(file=screen, force_terminal=True, width=100)) as live:
        live(after)
    assert "2 jobs: 1 running, 1 waiting" in screen.getvalue()


def test_report_prints_a_table_csv_json_or_a_page(run: Run, tmp_path: Path) -> None:
    path = str(write(tmp_path, """jobs: {a: {command: 'echo "{\\"loss\\": 0.5}"'}}"""))
    run("batch", "run", path)
    assert "loss 0.5" in run("report", path).stdout
    assert run("report", path, "--csv").stdout.startswith("name,state,loss,")
    assert json.loads(run("report", path, "--json").stdout)[0]["metrics"] == {"loss": 0.5}
    assert "wrote page.html" in run("report", path, "-o", "page.html", "--title", "mine").stderr
    assert "<title>mine" in (tmp_path / "page.html").read_text()
    assert run("report", path, "--csv", "--json").exit_code == 2
