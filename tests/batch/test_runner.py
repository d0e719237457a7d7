from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from lowmem.batch import attempt, child
from lowmem.batch.ledger import Entry, Ledger
from lowmem.batch.processes import resident_bytes
from lowmem.errors import ConfigError, Interrupted
from tests.batch.batches import run, runner_of, write

MIB = 2**20


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_job_reports_what_its_last_line_says_and_its_memory(tmp_path: Path) -> None:
    done = run(write(tmp_path, """jobs: {a: {command: 'echo words; echo "{\\"loss\\": 0.5}"'}}"""))["a"]
    assert (done.state, done.result, done.exit_code, done.attempts) == ("done", {"loss": 0.5}, 0, 1)
    assert done.peak_bytes is not None
    assert MIB / 4 < done.peak_bytes < 100 * MIB
    assert done.log is not None
    assert Path(done.log).read_text().splitlines()[0] == "words"


def test_done_jobs_are_skipped_and_changed_ones_run_again_with_what_follows_them(tmp_path: Path) -> None:
    text = "jobs:\n  a: {command: 'echo a >> journal'}\n  b: {command: 'echo b >> journal', after: a}\n  c: {command: 'echo c >> journal'}"  # noqa: E501
    path = write(tmp_path, text)
    run(path)
    run(path)
    assert sorted(Path("journal").read_text().split()) == ["a", "b", "c"]
    entries = run(write(tmp_path, text.replace("echo a", "true; echo a")))
    assert Path("journal").read_text().split()[3:] == ["a", "b"]
    assert entries["a"].attempts == 2


def test_a_failure_is_tried_again_and_then_blocks_what_follows(tmp_path: Path) -> None:
    text = """
jobs:
  flaky: {command: "test -e there || { touch there; echo error: not yet >&2; exit 4; }", retries: 2}
  bad: {command: "echo error: no hope >&2; echo later >&2; exit 9", retries: 1}
  hopeless: {command: "exit 2", retries: 5}
  behind: {command: "true", after: [flaky, bad]}
  missing: {command: [/no/such/program]}
"""
    done = run(write(tmp_path, text))
    assert (done["flaky"].state, done["flaky"].attempts, done["flaky"].error) == ("done", 2, None)
    assert (done["bad"].state, done["bad"].attempts) == ("failed", 2)
    assert done["bad"].error == "exit code 9: error: no hope"
    assert (done["hopeless"].state, done["hopeless"].attempts) == ("failed", 1)
    assert (done["behind"].state, done["behind"].error) == ("blocked", "waits for bad, which failed")
    assert done["missing"].error == "exit code 127: /no/such/program: No such file or directory"


def test_without_continue_on_error_nothing_new_starts_after_a_failure(tmp_path: Path) -> None:
    text = "continue_on_error: false\nmax_parallel: 1\njobs:\n  a: {command: exit 1}\n  b: {command: 'true'}"
    assert {name: entry.state for name, entry in run(write(tmp_path, text)).items()} == {"a": "failed", "b": "waiting"}


def test_a_timeout_lets_the_job_save_first(tmp_path: Path) -> None:
    text = """jobs: {a: {command: "trap 'echo saved; exit 0' INT; while true; do sleep 0.05; done", timeout: 0.4s}}"""
    done = run(write(tmp_path, text))["a"]
    assert (done.state, done.exit_code) == ("failed", 124)
    assert done.error == "did not end within its timeout; last line: saved"


def test_a_job_that_ignores_its_timeout_is_killed_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(child.__file__).read_text().replace("GRACE_SECONDS = 30.0", "GRACE_SECONDS = 0.2")
    (tmp_path / "child.py").write_text(source)
    monkeypatch.setattr(child, "__file__", str(tmp_path / "child.py"))
    text = """jobs: {a: {command: "trap '' INT; sleep 61.25 & echo $! > pid; sleep 61.25", timeout: 0.3s}}"""
    started = time.monotonic()
    done = run(write(tmp_path, text))["a"]
    assert (done.state, done.exit_code) == ("failed", 124)
    assert time.monotonic() - started < 10
    pid = int(Path("pid").read_text())
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "the grandchild lives"
        time.sleep(0.02)


def test_a_job_killed_from_outside_is_told_by_its_signal(tmp_path: Path) -> None:
    done = run(write(tmp_path, "jobs: {a: {command: 'kill -9 $$'}}"))["a"]
    assert (done.state, done.exit_code, done.error) == ("failed", 137, "ended by signal 9; last line: it said nothing")


def test_an_interrupted_batch_stops_its_jobs_and_goes_on_later(tmp_path: Path) -> None:
    text = """jobs: {a: {command: "trap 'echo saved; exit 130' INT; test -e go || while true; do sleep 0.05; done"}}"""
    path = write(tmp_path, text)
    sender = threading.Timer(0.8, os.kill, (os.getpid(), signal.SIGINT))
    sender.start()
    with pytest.raises(Interrupted, match="the batch was stopped; its jobs have saved"):
        run(path)
    sender.join()
    (entry,) = Ledger(tmp_path / "jobs.batch/ledger.db").entries()
    assert (entry.state, entry.failures) == ("waiting", 0)
    Path("go").touch()
    assert run(path)["a"].state == "done"


def test_a_second_signal_ends_jobs_that_do_not_listen(tmp_path: Path) -> None:
    path = write(tmp_path, """jobs: {a: {command: "trap '' INT; sleep 61"}}""")
    senders = [threading.Timer(wait, os.kill, (os.getpid(), signal.SIGINT)) for wait in (0.6, 1.0)]
    for sender in senders:
        sender.start()
    with pytest.raises(Interrupted):
        run(path)
    (entry,) = Ledger(tmp_path / "jobs.batch/ledger.db").entries()
    assert entry.state == "waiting"


def test_a_job_cancelled_by_another_process_stops(tmp_path: Path) -> None:
    path = write(
        tmp_path, "max_parallel: 1\njobs: {a: {command: sleep 61}, b: {command: 'true'}, c: {command: 'true'}}"
    )

    def cancel() -> None:
        Ledger(tmp_path / "jobs.batch/ledger.db").ask_to_cancel(["a", "c"])

    timer = threading.Timer(0.8, cancel)
    timer.start()
    done = run(path)
    timer.join()
    assert {name: entry.state for name, entry in done.items()} == {"a": "cancelled", "b": "done", "c": "cancelled"}
    assert (done["a"].error, done["c"].error) == ("cancelled while it ran", "cancelled before it started")


def test_an_attempt_that_was_given_up_never_begins(tmp_path: Path) -> None:
    folder = tmp_path / "attempt"
    assert attempt.give_up(folder)
    process = attempt.launch(folder, ["touch", "ran"], env={}, timeout=None)
    assert process.wait() == child.NOT_STARTED
    assert not Path("ran").exists()
    assert not attempt.give_up(folder), "once is enough"
    assert attempt.read_watcher(folder) is None


def test_an_attempt_written_down_but_never_begun_waits_again(tmp_path: Path) -> None:
    path = write(tmp_path, "jobs: {a: {command: 'true'}}")
    first = runner_of(path)
    first.ledger.list_jobs([task.listing() for task in first.tasks.values()])
    first.ledger.start("a", log="log")  # and here the runner is killed
    first.ledger.close()
    done = run(path)["a"]
    assert (done.state, done.attempts, done.failures) == ("done", 2, 0)


def test_a_job_whose_process_always_vanishes_fails_at_last(tmp_path: Path) -> None:
    # It kills its watcher, and with that itself.
    done = run(write(tmp_path, "jobs: {a: {command: 'kill -9 $PPID; sleep 5'}}"), max_parallel=1)
    assert done["a"].state == "failed"


def test_an_attempt_of_another_boot_is_judged_by_its_heartbeat(tmp_path: Path) -> None:
    folder = tmp_path / "attempt"
    folder.mkdir()
    child.claim(str(folder), {"pid": 1, "ticks": 1, "here": "another boot", "started": 0.0})
    assert not attempt.is_running(folder)
    (folder / "alive").touch()
    assert attempt.is_running(folder)
    os.utime(folder / "alive", (0, time.time() - 61))
    assert not attempt.is_running(folder)
    assert not attempt.send(folder, signal.SIGKILL), "that number means another process here"


def test_two_runners_of_one_batch_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "jobs: {a: {command: 'true'}}")
    runner = runner_of(path)
    runner.ledger.take()
    import sqlite3

    with sqlite3.connect(tmp_path / "jobs.batch/ledger.db") as db:
        db.execute("UPDATE runner SET pid = 1, here = 'another boot'")
    db.close()
    with pytest.raises(ConfigError, match="is running this batch already"):
        run(path)


HOLD = "import time; held = b'x' * ({size} * 2**20); time.sleep(0.8)"


def test_packed_jobs_never_exceed_the_budget_and_take_less_time_than_in_turn(tmp_path: Path) -> None:
    """Sizes 1, 1, 2, 3 under 4, in units of 64 MiB, of which the interpreter takes less than 16."""
    sizes = {"a": 1, "b": 1, "c": 2, "d": 3}
    jobs = [
        f'  {name}: {{memory: {64 * n}MiB, command: [{sys.executable}, -c, "{HOLD.format(size=64 * n - 16)}"]}}'
        for name, n in sizes.items()
    ]
    path = write(tmp_path, "\n".join(["memory_budget: 256MiB", "max_parallel: 4", "jobs:", *jobs]))
    peak = [0]

    def look(entries: object) -> None:
        assert isinstance(entries, list)
        running: list[Entry] = [entry for entry in entries if entry.state == "running"]
        watchers = [attempt.read_watcher(tmp_path / f"jobs.batch/attempts/{e.name}/{e.attempts}") for e in running]
        peak[0] = max(peak[0], sum(resident_bytes(watcher.pid) for watcher in watchers if watcher))

    done = run(path, watch=look)
    assert all(entry.state == "done" for entry in done.values())
    assert 160 * MIB < peak[0] <= 256 * MIB
    for entry in done.values():
        assert entry.peak_bytes is not None
        assert entry.predicted_bytes is not None
        assert entry.peak_bytes <= entry.predicted_bytes
    started = [entry.started for entry in done.values() if entry.started]
    ended = [entry.ended for entry in done.values() if entry.ended]
    assert max(ended) - min(started) < sum(entry.seconds for entry in done.values())
