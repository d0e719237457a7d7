"""Twelve jobs, real trainings among them, through the real command line: killed five times, once with all its jobs."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lowmem.batch.ledger import Entry, Ledger
from tests.batch.batches import write

TEXT = """
max_parallel: 2
defaults: {memory: 700MiB}
jobs:
  tune:
    train: tiny-demo
    set: {max_steps: 30, save_steps: 5, eval_limit: 8, eval_generate: false, num_threads: 1}
    matrix: {learning_rate: [1e-3, 5e-3]}
  check:
    eval: ${jobs.tune.output_dir}
    args: {limit: 8}
    set: {eval_generate: false}
  note:
    command: 'sleep 0.5; echo note $LOWMEM_JOB >> journal; echo "{\\"value\\": $X}"'
    env: {X: "${matrix.x}"}
    matrix: {x: [1, 2, 3, 4]}
  count:
    command: 'cat runs/jobs/tune-*/metrics.jsonl | grep -c StepDone'
    after: [tune, note]
  last: {command: 'echo "{\\"value\\": 7}"', after: [check, count]}
  broken: {command: exit 7, after: note, retries: 1}
  broken_too: {command: sleep 0.2; exit 9}
"""
JOBS = 12


def command(path: Path) -> list[str]:
    return [sys.executable, "-m", "lowmem", "batch", "run", str(path)]


def entries(folder: Path) -> dict[str, Entry]:
    ledger = Ledger(folder / "jobs.batch/ledger.db")
    try:
        return {entry.name: entry for entry in ledger.entries()}
    finally:
        ledger.close()


def outcome(found: dict[str, Entry]) -> dict[str, tuple[Any, ...]]:
    """What must not depend on kills: of results, all that is not time or memory."""
    kept = {}
    for name, entry in found.items():
        result = {k: v for k, v in (entry.result or {}).items() if k not in ("seconds", "peak_bytes")}
        kept[name] = (entry.state, result, entry.exit_code, entry.failures)
    return kept


def kill_jobs(folder: Path) -> int:
    """The watchers of all running jobs are killed, and with them the jobs, as when the machine goes down."""
    killed = 0
    for entry in entries(folder).values():
        started = folder / f"jobs.batch/attempts/{entry.name}/{entry.attempts}/started.json"
        if entry.state == "running" and started.is_file():
            os.kill(json.loads(started.read_text())["pid"], signal.SIGKILL)
            killed += 1
    return killed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twelve_jobs_come_to_the_same_after_five_kills(tmp_path: Path) -> None:
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    for folder in (calm, rough):
        folder.mkdir()
    done = subprocess.run(command(write(calm, TEXT)), cwd=calm, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    wanted = outcome(entries(calm))
    assert len(wanted) == JOBS
    assert Counter(row[0] for row in wanted.values()) == {"done": JOBS - 2, "failed": 2}
    draw, jobs_killed = random.Random(8), 0
    path = write(rough, TEXT)
    for number in range(5):
        runner = subprocess.Popen(command(path), cwd=rough, stderr=subprocess.PIPE, text=True)
        assert runner.stderr is not None
        runner.stderr.readline()  # the first job is under way
        time.sleep(draw.uniform(0.2, 8.0))
        runner.kill()
        runner.wait()
        runner.stderr.close()
        if number == 2:
            jobs_killed = kill_jobs(rough)
    subprocess.run(command(path), cwd=rough, capture_output=True)
    found = entries(rough)
    assert outcome(found) == wanted
    assert jobs_killed, "the third kill took jobs with it"
    journal = Counter((rough / "journal").read_text().split("\n"))
    ledger = Ledger(rough / "jobs.batch/ledger.db")
    for name in found:
        ends = Counter(attempt["outcome"] for attempt in ledger.attempts(name))
        assert ends["done"] <= 1, f"{name} ran to its end twice"
        assert journal[f"note {name}"] <= 1
    ledger.close()
