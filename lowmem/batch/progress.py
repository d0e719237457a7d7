"""How far a running job is, from what it writes into its folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowmem.batch.attempt import last_lines
from lowmem.batch.ledger import Entry

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Progress:
    """The last step that a training job wrote down."""

    step: int
    total: int | None
    loss: float
    tokens_per_second: float
    peak_bytes: int


def progress_of(entry: Entry) -> Progress | None:
    """How far the job is; None when it writes no steps, or has not written one yet."""
    path = Path(entry.folder) / METRICS
    if not path.is_file():
        return None
    last = next((r for r in _backwards(last_lines(path, 30)) if r.get("event") == "StepDone"), None)
    if last is None:
        return None
    return Progress(
        int(last["step"]), _total(path), float(last["loss"]), float(last["tokens_per_second"]), int(last["peak_bytes"])
    )


def _total(path: Path) -> int | None:
    with path.open(errors="replace") as file:
        for _, line in zip(range(5), file, strict=False):
            for record in _backwards([line]):
                if record.get("event") == "RunStarted":
                    return int(record["total_steps"])
    return None


def _backwards(lines: list[str]) -> Iterator[dict[str, Any]]:
    """The records of the lines, the last first; a line that is not whole yet is no record."""
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record
