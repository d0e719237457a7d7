from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from lowmem.batch.ledger import Ledger, LedgerError, Listing
from lowmem.batch.processes import here, is_alive, start_ticks
from lowmem.errors import ConfigError


def listing(name: str, digest: str = "d", *, too_large: str | None = None) -> Listing:
    return Listing(name, "command", digest, 5, too_large, f"runs/{name}", (), ("quick",), {"seed": 1})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.db")


def states(ledger: Ledger) -> dict[str, str]:
    return {entry.name: entry.state for entry in ledger.entries()}


def finish(ledger: Ledger, name: str) -> None:
    ledger.start(name, log="log")
    ledger.end(name, "done", outcome="done", exit_code=0, peak_bytes=7, seconds=2.0, result={"loss": 0.5})


def test_what_was_written_is_read_back_by_another(ledger: Ledger) -> None:
    ledger.list_jobs([listing("a"), listing("b")])
    finish(ledger, "a")
    entry = Ledger(ledger.path).entries()[0]
    assert (entry.name, entry.state, entry.result, entry.attempts) == ("a", "done", {"loss": 0.5}, 1)
    assert (entry.seconds, entry.peak_bytes, entry.tags, entry.point) == (2.0, 7, ("quick",), {"seed": 1})
    (attempt,) = ledger.attempts("a")
    assert (attempt["number"], attempt["outcome"], attempt["exit_code"]) == (1, "done", 0)


def test_done_jobs_stay_done_changed_ones_wait_and_removed_ones_are_hidden(ledger: Ledger) -> None:
    ledger.list_jobs([listing("a"), listing("b"), listing("c")])
    for name in "abc":
        finish(ledger, name)
    ledger.list_jobs([listing("a"), listing("b", "other")])
    assert states(ledger) == {"a": "done", "b": "waiting"}
    assert ledger.entries()[1].attempts == 1, "attempts are numbered on"
    ledger.list_jobs([listing("a"), listing("b", "other"), listing("c")])
    assert states(ledger)["c"] == "done", "it comes back as it was"


def test_a_job_that_changed_while_it_runs_is_refused(ledger: Ledger) -> None:
    ledger.list_jobs([listing("a")])
    ledger.start("a", log="log")
    with pytest.raises(ConfigError, match="a: is still running with its former settings; cancel it or wait for it"):
        ledger.list_jobs([listing("a", "other")])
    assert states(ledger) == {"a": "running"}, "the refused listing left nothing behind"


def test_a_job_fits_again_when_the_budget_grows(ledger: Ledger) -> None:
    ledger.list_jobs([listing("a", too_large="needs 5")])
    assert (ledger.entries()[0].state, ledger.entries()[0].error) == ("too_large", "needs 5")
    ledger.list_jobs([listing("a")])
    assert (ledger.entries()[0].state, ledger.entries()[0].error) == ("waiting", None)


def test_there_is_one_runner_at_a_time(ledger: Ledger) -> None:
    program = (
        "import time; from lowmem.batch.ledger import Ledger; from pathlib import Path\n"
        f"Ledger(Path({str(ledger.path)!r})).take(); print('taken', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "taken\n"
    assert ledger.runner_lives()
    with pytest.raises(ConfigError, match=f"process {other.pid} on .* is running this batch already"):
        ledger.take()
    other.kill()
    other.wait()
    other.stdout.close()
    assert not ledger.runner_lives()
    ledger.take()
    ledger.take()
    ledger.release()
    assert not ledger.runner_lives()


def test_a_runner_elsewhere_is_judged_by_its_heartbeat(ledger: Ledger) -> None:
    ledger.take()
    with sqlite3.connect(ledger.path) as db:
        db.execute("UPDATE runner SET here = 'another boot', pid = 1")
    assert ledger.runner_lives()
    with sqlite3.connect(ledger.path) as db:
        db.execute("UPDATE runner SET heartbeat = heartbeat - 61")
    assert not ledger.runner_lives()
    db.close()


def test_a_full_disk_is_explained_and_leaves_the_ledger_whole(ledger: Ledger) -> None:
    ledger.list_jobs([listing("a")])
    pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
    ledger._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LedgerError, match=r"database or disk is full.*is the disk full"):
        ledger.list_jobs([listing(f"job-{i}", "d" * 500) for i in range(100)])
    assert states(ledger) == {"a": "waiting"}
    ledger._db.execute("PRAGMA max_page_count = 100000")
    ledger.list_jobs([listing(f"job-{i}") for i in range(100)])
    assert len(states(ledger)) == 100


def test_a_damaged_or_newer_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("not a database, but long enough to be taken for the start of one" * 20)
    with pytest.raises(LedgerError, match=r"ledger.db: file is not a database"):
        Ledger(tmp_path / "ledger.db")
    newer = Ledger(tmp_path / "newer.db")
    newer._db.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(LedgerError, match="has format 99; this version reads format 1"):
        Ledger(tmp_path / "newer.db")


def test_retry_and_cancel_change_what_they_should(ledger: Ledger) -> None:
    ledger.list_jobs([listing("a"), listing("b")])
    version = ledger.version()
    other = Ledger(ledger.path)
    other.ask_to_cancel(["b"])
    assert ledger.version() != version, "a runner notices"
    assert [entry.cancel for entry in ledger.entries()] == [False, True]
    ledger.start("a", log="log")
    ledger.end("a", "failed", outcome="failed", exit_code=1, error="boom", failed=True)
    other.retry(["a", "b"])
    first, second = ledger.entries()
    assert (first.state, first.failures, first.error, first.attempts) == ("waiting", 0, None, 1)
    assert not second.cancel


def test_a_process_is_known_beyond_its_number() -> None:
    mine = start_ticks(os.getpid())
    assert mine is not None
    assert is_alive(os.getpid(), mine)
    assert not is_alive(os.getpid(), mine + 1), "the number was given to another process"
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert start_ticks(ended.pid) is None
    assert len(here().split()) == 2
