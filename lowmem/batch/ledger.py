"""What is known about every job of a batch, in one SQLite file that survives whatever the runner does not.

Write-ahead logging on a local disk; every change is one transaction, so what was read is never half of a change, and
after a crash the ledger is as it was after the last of them. Only the driver of a batch writes here (and a person's
`cancel` and `retry`, which are single updates); jobs write files of their own (`attempt.py`).
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from lowmem.batch.processes import STALE_SECONDS, here, is_alive, start_ticks
from lowmem.errors import ConfigError, LowmemError

State = Literal["waiting", "running", "done", "failed", "blocked", "cancelled", "too_large"]
OVER: tuple[State, ...] = ("done", "failed", "blocked", "cancelled", "too_large")
"""States in which nothing happens any more unless somebody asks."""
FORMAT = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    name TEXT PRIMARY KEY, position INTEGER NOT NULL, kind TEXT NOT NULL, digest TEXT NOT NULL, state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, failures INTEGER NOT NULL DEFAULT 0, started REAL, ended REAL,
    seconds REAL NOT NULL DEFAULT 0, predicted_bytes INTEGER, peak_bytes INTEGER, exit_code INTEGER, error TEXT,
    result TEXT, folder TEXT NOT NULL, log TEXT, after TEXT NOT NULL, tags TEXT NOT NULL, point TEXT NOT NULL,
    cancel INTEGER NOT NULL DEFAULT 0, listed INTEGER NOT NULL DEFAULT 1
);
CREATE TABLE IF NOT EXISTS attempts (
    job TEXT NOT NULL, number INTEGER NOT NULL, digest TEXT NOT NULL, started REAL NOT NULL, ended REAL,
    outcome TEXT, exit_code INTEGER, peak_bytes INTEGER, PRIMARY KEY (job, number)
);
CREATE TABLE IF NOT EXISTS runner (
    id INTEGER PRIMARY KEY CHECK (id = 1), pid INTEGER NOT NULL, ticks INTEGER NOT NULL, here TEXT NOT NULL,
    host TEXT NOT NULL, heartbeat REAL NOT NULL
);
"""


class LedgerError(LowmemError):
    """The ledger cannot be written or read: a full disk, a damaged file."""


@dataclass(frozen=True)
class Entry:
    """A job as the ledger knows it. Times are seconds since the epoch; `seconds` is the sum over all attempts."""

    name: str
    position: int
    kind: str
    digest: str
    state: State
    attempts: int
    failures: int
    started: float | None
    ended: float | None
    seconds: float
    predicted_bytes: int | None
    peak_bytes: int | None
    exit_code: int | None
    error: str | None
    result: dict[str, Any] | None
    folder: str
    log: str | None
    after: tuple[str, ...]
    tags: tuple[str, ...]
    point: dict[str, Any]
    cancel: bool


@dataclass(frozen=True)
class Listing:
    """A job as the file has it."""

    name: str
    kind: str
    digest: str
    predicted_bytes: int | None
    too_large: str | None
    folder: str
    after: tuple[str, ...]
    tags: tuple[str, ...]
    point: Mapping[str, Any]


class Ledger:
    """The ledger in file `path`, made when there is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._explained():
            # Autocommit: transactions are begun by hand, and reading takes none.
            self._db = sqlite3.connect(path, timeout=30.0, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found == 0:
                with self._transaction():
                    for statement in filter(str.strip, _SCHEMA.split(";")):
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA user_version = {FORMAT}")
            elif found != FORMAT:
                raise LedgerError(f"{path} has format {found}; this version reads format {FORMAT}")

    def close(self) -> None:
        self._db.close()

    def entries(self) -> list[Entry]:
        """Every job that the file lists, in its order."""
        with self._explained():
            rows = self._db.execute("SELECT * FROM jobs WHERE listed ORDER BY position").fetchall()
        return [_entry(row) for row in rows]

    def version(self) -> int:
        """A number that changes when another connection has written."""
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def attempts(self, job: str) -> list[dict[str, Any]]:
        """The attempts at a job, oldest first."""
        with self._explained():
            rows = self._db.execute("SELECT * FROM attempts WHERE job = ? ORDER BY number", (job,)).fetchall()
        return [dict(row) for row in rows]

    # The runner's own part.

    def take(self) -> None:
        """This process is the batch's runner. Raises `ConfigError` while another one is."""
        with self._transaction():
            row = self._db.execute("SELECT * FROM runner").fetchone()
            if row is not None and _lives(row) and row["pid"] != os.getpid():
                raise ConfigError(
                    f"batch: process {row['pid']} on {row['host']} is running this batch already; "
                    "wait for it, watch it with `lowmem batch status --watch`, or end it"
                )
            mine = (os.getpid(), start_ticks(os.getpid()), here(), os.uname().nodename, time.time())
            self._db.execute("INSERT OR REPLACE INTO runner VALUES (1, ?, ?, ?, ?, ?)", mine)

    def beat(self) -> None:
        """The runner lives."""
        with self._transaction():
            self._db.execute("UPDATE runner SET heartbeat = ?", (time.time(),))

    def release(self) -> None:
        """The batch has no runner."""
        with self._transaction():
            self._db.execute("DELETE FROM runner WHERE pid = ? AND here = ?", (os.getpid(), here()))

    def runner_lives(self) -> bool:
        """Whether the batch has a runner."""
        row = self._db.execute("SELECT * FROM runner").fetchone()
        return row is not None and _lives(row)

    def list_jobs(self, listings: Sequence[Listing]) -> None:
        """The ledger lists exactly these jobs. Those that changed wait again, and what is known of the others stays.

        Raises `ConfigError` when a job that changed is running.
        """
        known = {entry.name: entry for entry in self._all()}
        with self._transaction():
            self._db.execute("UPDATE jobs SET listed = 0")
            for position, listing in enumerate(listings):
                before = known.get(listing.name)
                if before is None or before.digest != listing.digest:
                    if before is not None and before.state == "running":
                        raise ConfigError(
                            f"{listing.name}: is still running with its former settings; cancel it or wait for it"
                        )
                    self._insert(position, listing, attempts=0 if before is None else before.attempts)
                else:
                    self._refresh(position, listing, before)

    def _insert(self, position: int, listing: Listing, *, attempts: int) -> None:
        row = {
            "name": listing.name,
            "position": position,
            "kind": listing.kind,
            "digest": listing.digest,
            "state": "waiting" if listing.too_large is None else "too_large",
            "attempts": attempts,
            "predicted_bytes": listing.predicted_bytes,
            "error": listing.too_large,
            "folder": listing.folder,
            "after": json.dumps(listing.after),
            "tags": json.dumps(listing.tags),
            "point": json.dumps(listing.point),
        }
        names = ", ".join(row)
        marks = ", ".join("?" * len(row))
        self._db.execute(f"INSERT OR REPLACE INTO jobs ({names}) VALUES ({marks})", tuple(row.values()))

    def _refresh(self, position: int, listing: Listing, before: Entry) -> None:
        """What may change without the job being another one. A budget may have changed, so fitting is judged anew."""
        state, error = before.state, before.error
        if state in ("waiting", "too_large", "blocked"):
            state, error = ("waiting", None) if listing.too_large is None else ("too_large", listing.too_large)
        self._db.execute(
            "UPDATE jobs SET listed = 1, position = ?, predicted_bytes = ?, after = ?, tags = ?, state = ?, error = ? "
            "WHERE name = ?",
            (
                *(position, listing.predicted_bytes, json.dumps(listing.after), json.dumps(listing.tags)),
                *(state, error, listing.name),
            ),
        )

    def start(self, name: str, *, log: str) -> int:
        """The job runs, or is about to; returns the number of the attempt."""
        with self._transaction():
            row = self._db.execute("SELECT attempts, digest FROM jobs WHERE name = ?", (name,)).fetchone()
            number, now = row["attempts"] + 1, time.time()
            self._db.execute(
                "UPDATE jobs SET state = 'running', attempts = ?, started = ?, ended = NULL, exit_code = NULL, "
                "error = NULL, log = ? WHERE name = ?",
                (number, now, log.replace("{attempt}", str(number)), name),
            )
            self._db.execute(
                "INSERT INTO attempts (job, number, digest, started) VALUES (?, ?, ?, ?)",
                (name, number, row["digest"], now),
            )
        return int(number)

    def end(
        self,
        name: str,
        state: State,
        *,
        outcome: str,
        exit_code: int | None = None,
        peak_bytes: int | None = None,
        seconds: float = 0.0,
        error: str | None = None,
        result: Mapping[str, Any] | None = None,
        failed: bool = False,
    ) -> None:
        """The job's current attempt is over; the job goes on to `state`."""
        with self._transaction():
            now = time.time()
            self._db.execute(
                "UPDATE jobs SET state = ?, ended = ?, exit_code = ?, seconds = seconds + ?, error = ?, result = ?, "
                "failures = failures + ?, cancel = 0, peak_bytes = MAX(COALESCE(peak_bytes, 0), COALESCE(?, 0)) "
                "WHERE name = ?",
                (
                    *(state, now, exit_code, seconds, error, None if result is None else json.dumps(result)),
                    *(int(failed), peak_bytes, name),
                ),
            )
            self._db.execute(
                "UPDATE attempts SET ended = ?, outcome = ?, exit_code = ?, peak_bytes = ? WHERE job = ? AND number = "
                "(SELECT attempts FROM jobs WHERE name = ?)",
                (now, outcome, exit_code, peak_bytes, name, name),
            )

    def put(self, name: str, state: State, *, error: str | None = None) -> None:
        """A job that is not running changes its state."""
        with self._transaction():
            self._db.execute("UPDATE jobs SET state = ?, error = ?, cancel = 0 WHERE name = ?", (state, error, name))

    def import_done(
        self, name: str, *, result: Mapping[str, Any], folder: str, peak_bytes: int, seconds: float
    ) -> None:
        """The job was done elsewhere, with this result."""
        with self._transaction():
            self._db.execute(
                "UPDATE jobs SET state = 'done', result = ?, folder = ?, peak_bytes = ?, seconds = ?, ended = ?, "
                "exit_code = 0, error = NULL WHERE name = ?",
                (json.dumps(result), folder, peak_bytes, seconds, time.time(), name),
            )

    # What a person asks for.

    def ask_to_cancel(self, names: Sequence[str]) -> None:
        """The runner stops these jobs, or never starts them."""
        with self._transaction():
            self._db.executemany("UPDATE jobs SET cancel = 1 WHERE name = ?", [(name,) for name in names])

    def retry(self, names: Sequence[str]) -> None:
        """These jobs wait again, with all their retries before them."""
        with self._transaction():
            self._db.executemany(
                "UPDATE jobs SET state = 'waiting', failures = 0, error = NULL, exit_code = NULL, cancel = 0 "
                "WHERE name = ? AND state != 'running'",
                [(name,) for name in names],
            )

    def _all(self) -> list[Entry]:
        return [_entry(row) for row in self._db.execute("SELECT * FROM jobs").fetchall()]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise LedgerError(
                f"{self.path}: {error}. The ledger is as it was before this change: mend the cause (is the disk full?) "
                "and run the batch again; what has ended in the meantime is found"
            ) from error


def _lives(row: sqlite3.Row) -> bool:
    """Whether the recorded runner lives: surely known here, by its heartbeat elsewhere."""
    if row["here"] == here():
        return is_alive(row["pid"], row["ticks"])
    return bool(time.time() - row["heartbeat"] < STALE_SECONDS)


def _entry(row: sqlite3.Row) -> Entry:
    values = {field.name: row[field.name] for field in fields(Entry)}
    values["result"] = None if row["result"] is None else json.loads(row["result"])
    values["after"], values["tags"] = tuple(json.loads(row["after"])), tuple(json.loads(row["tags"]))
    values["point"], values["cancel"] = json.loads(row["point"]), bool(row["cancel"])
    return Entry(**values)
