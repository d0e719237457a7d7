"""A runner that is killed at any moment loses nothing: what the batch comes to is what an undisturbed run comes to."""

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

import pytest

from lowmem.batch.ledger import Entry, Ledger
from tests.batch.batches import run, write

# Every step reads what the one before it wrote, and notes in a journal when it begins and when it has come to its end.
STEP = (
    "echo begin $LOWMEM_JOB >> journal; sleep $PAUSE; "
    'value=$(( $(cat "$FROM" 2>/dev/null || echo 1) * 3 + $SEED )); echo $value > ${output_dir}/value; '
    'echo end $LOWMEM_JOB >> journal; echo "{\\"value\\": $value}"'
)
TWELVE = f"""\
output_dir: out
max_parallel: 2
defaults:
  env: {{PAUSE: "0.25"}}
jobs:
  first:
    command: '{STEP}'
    env: {{SEED: "${{matrix.seed}}", FROM: none}}
    matrix: {{seed: [1, 2, 3]}}
  second:
    command: '{STEP}'
    env: {{SEED: "${{matrix.scale}}", FROM: "${{jobs.first.output_dir}}/value"}}
    zip: {{scale: [5, 7]}}
  sum:
    command: 'echo begin $LOWMEM_JOB >> journal; sleep 0.2; echo end $LOWMEM_JOB >> journal; echo "{{\\"value\\": $(( $(cat out/second-*/value | paste -sd+) ))}}"'
    after: second
  broken:
    command: echo begin broken >> journal; sleep 0.2; echo fail broken >> journal; exit 7
    retries: 1
    after: first
  broken_too:
    command: echo begin broken_too >> journal; sleep 0.1; echo fail broken_too >> journal; exit 9
"""  # noqa: E501
JOBS = 3 + 6 + 3


def outcome(entries: dict[str, Entry]) -> dict[str, tuple[object, ...]]:
    """What must not depend on how often the runner was killed."""
    return {name: (e.state, e.result, e.exit_code, e.failures) for name, e in entries.items()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[object, ...]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return outcome(run(write(folder, TWELVE)))


def killed_runs(path: Path, *, moments: list[float]) -> int:
    """The batch's runner is started and killed after each of `moments` seconds; returns how often it was alive then."""
    command = [sys.executable, "-m", "tests.batch.batches", str(path)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    alive = 0
    for moment in moments:
        process = subprocess.Popen(command, cwd=path.parent, env=environment)
        time.sleep(moment)
        alive += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    return alive


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_runner_killed_at_five_moments_comes_to_the_same(
    seed: int, tmp_path: Path, undisturbed: dict[str, tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, TWELVE)
    assert len(undisturbed) == JOBS
    draw = random.Random(seed)
    # The interpreter needs about half a second to come to its first job.
    alive = killed_runs(path, moments=[draw.uniform(0.4, 1.2) for _ in range(5)])
    monkeypatch.chdir(tmp_path)
    entries = run(path)
    assert outcome(entries) == undisturbed
    assert sum(e.state == "failed" for e in entries.values()) == 2
    assert alive >= 2, "the runner was killed while it worked"
    ended = Counter(line for line in Path("journal").read_text().splitlines() if line.startswith("end"))
    assert set(ended.values()) == {1}, "nothing ran to its end twice"
    assert len(ended) == JOBS - 2, "nothing was lost"
    failures = Counter(line for line in Path("journal").read_text().splitlines() if line.startswith("fail"))
    assert failures == {"fail broken": 2, "fail broken_too": 1}


@pytest.mark.slow
def test_jobs_and_runner_killed_together_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, TWELVE)
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    process = subprocess.Popen([sys.executable, "-m", "tests.batch.batches", str(path)], cwd=tmp_path)
    monkeypatch.chdir(tmp_path)
    while not (journal := tmp_path / "journal").exists() or "begin second" not in journal.read_text():
        time.sleep(0.05)
    process.kill()
    process.wait()
    running = [e for e in Ledger(tmp_path / "jobs.batch/ledger.db").entries() if e.state == "running"]
    assert running
    for entry in running:
        started = json.loads((tmp_path / f"jobs.batch/attempts/{entry.name}/{entry.attempts}/started.json").read_text())
        os.kill(started["pid"], signal.SIGKILL)  # the watcher only: its job must die with it
    entries = run(path)
    assert sum(e.state == "done" for e in entries.values()) == JOBS - 2
    ended = Counter(line for line in journal.read_text().splitlines() if line.startswith("end"))
    assert set(ended.values()) == {1}
