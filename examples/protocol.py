"""Comparisons that were planned before they ran: a protocol file, its tiers, and cells that are computed once.

A protocol (`examples/protocols/NAME.yaml`) says what is asked, on which data, with which grid, seeds and metric, and at
what cost, for three tiers: `quick` (under a minute, shows that the script works), `session` and `full`. The last two
refuse to start while the file is not committed as it stands, so nobody can fit the question to the answer.

    protocol = open_protocol("zo", "session")
    outcome = protocol.cell({"task": "sst2", "method": "mezo", "lr": 1e-6, "seed": 0}, lambda: {"loss": train(...)})

A cell's outcome lies in `runs/protocols/NAME/TIER/…/CELL.json` with its CPU seconds and the commit of the code that
ran: a script that is stopped goes on with the first missing cell. Cells of another version of the tier are never read.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

ROOT = Path(__file__).resolve().parent.parent
PROTOCOLS = ROOT / "examples" / "protocols"
CELLS = ROOT / "runs" / "protocols"

Tier = Literal["quick", "session", "full"]
TIERS: tuple[Tier, ...] = ("quick", "session", "full")
Verdict = Literal["better", "worse", "undecided"]


class ProtocolError(Exception):
    """The protocol cannot be run as asked."""


@dataclass(frozen=True)
class Protocol:
    """One tier of one protocol. `settings` are the tier's own keys over the keys of the file's `common` section."""

    name: str
    tier: Tier
    question: str
    settings: dict[str, Any]
    commit: str | None
    """The commit that fixed the file; None in the quick tier of a file that is not committed."""
    folder: Path

    def cell(self, key: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The outcome of one cell, computed now or read from an earlier run, with `cpu_seconds` and `commit` added."""
        path = self.folder / f"{digest(key)}.json"
        if path.is_file():
            stored = json.loads(path.read_text())
            return dict(stored["outcome"])
        start = time.process_time()
        outcome = compute() | {"cpu_seconds": round(time.process_time() - start, 2), "commit": _head()}
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"key": key, "outcome": outcome}, indent=1))
        partial.replace(path)
        return outcome

    def has(self, key: dict[str, Any]) -> bool:
        """Whether this cell is finished."""
        return (self.folder / f"{digest(key)}.json").is_file()

    def cells(self) -> list[dict[str, Any]]:
        """Every finished cell: {"key", "outcome"}, in the order of their keys."""
        found = [json.loads(path.read_text()) for path in self.folder.glob("*.json")]
        return sorted(found, key=lambda cell: json.dumps(cell["key"], sort_keys=True))

    def cpu_minutes(self) -> float:
        """CPU time of all finished cells."""
        return sum(cell["outcome"]["cpu_seconds"] for cell in self.cells()) / 60


def open_protocol(name: str, tier: Tier, *, protocols: Path = PROTOCOLS, cells: Path = CELLS) -> Protocol:
    """The tier of `protocols/NAME.yaml`.

    Raises `ProtocolError` for an unknown tier, a missing key, and for a file that is not committed (not in tier quick).
    """
    path = protocols / f"{name}.yaml"
    content = yaml.safe_load(path.read_text())
    for key in ("question", "metric", "decision", "cpu_minutes", "tiers"):
        if key not in content:
            raise ProtocolError(
                f"{path.name} has no `{key}`; a protocol says question, metric, decision, cpu_minutes and tiers"
            )
    if tier not in content["tiers"]:
        raise ProtocolError(f"{path.name} has no tier {tier}; it has {', '.join(content['tiers'])}")
    settings = content.get("common", {}) | content["tiers"][tier]
    commit = _committed(path)
    if commit is None and tier != "quick":
        raise ProtocolError(f"{path.name} is not committed as it stands; commit it before the first {tier} run")
    folder = cells / name / tier / digest(settings)
    return Protocol(name, tier, content["question"], settings, commit, folder)


def digest(value: Any) -> str:
    """Twelve hexadecimal digits that change when `value` does."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def verdict(ours: Sequence[float], theirs: Sequence[float]) -> Verdict:
    """Whether `ours` is lower than `theirs`, one value a seed; a spread wider than the difference is undecided.

    The spread is the larger of both sample standard deviations. One seed decides nothing.
    """
    (our_mean, our_std), (their_mean, their_std) = mean_std(ours), mean_std(theirs)
    if min(len(ours), len(theirs)) < 2 or abs(our_mean - their_mean) <= max(our_std, their_std):
        return "undecided"
    return "better" if our_mean < their_mean else "worse"


def _committed(path: Path) -> str | None:
    """The last commit of `path` when the working tree's version is that commit's; None otherwise."""
    changed = _git("status", "--porcelain", "--", path.name, cwd=path.parent)
    commit = _git("log", "-1", "--format=%H", "--", path.name, cwd=path.parent)
    return commit if commit and changed == "" else None


def _head() -> str | None:
    return _git("rev-parse", "HEAD", cwd=ROOT)


def _git(*arguments: str, cwd: Path) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
