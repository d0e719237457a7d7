"""The jobs of a batch as a table: live while they run, plain lines where there is no terminal, whole at the end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lowmem.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from lowmem.batch.ledger import Entry

COLUMNS = ("job", "state", "time", "memory", "planned", "result")
COLORS = {"done": "green", "failed": "red", "running": "cyan", "too_large": "red", "blocked": "yellow"}
ENDED_SHOWN = 8
"""Jobs that ended last, below those that run: a live table must not outgrow the terminal."""


def counts(entries: Sequence[Entry]) -> str:
    """`12 jobs: 7 done, 2 running, 3 waiting`."""
    found = Counter(entry.state.replace("_", " ") for entry in entries)
    return f"{len(entries)} jobs: {', '.join(f'{number} {state}' for state, number in found.items()) or 'none'}"


def row(entry: Entry) -> list[str]:
    """The cells of a job, for `COLUMNS`."""
    seconds = entry.seconds
    if entry.state == "running" and entry.started is not None:
        seconds += time.time() - entry.started
    return [
        entry.name,
        entry.state.replace("_", " ") + (f" ({entry.attempts} attempts)" if entry.attempts > 1 else ""),
        format_seconds(seconds) if entry.attempts or seconds else "-",
        format_bytes(entry.peak_bytes) if entry.peak_bytes else "-",
        format_bytes(entry.predicted_bytes) if entry.predicted_bytes else "-",
        said(entry),
    ]


def said(entry: Entry) -> str:
    """What came of the job in a few words: its error, its metrics, or how far it is."""
    if entry.error:
        return entry.error.splitlines()[0]
    if entry.state == "running":
        return _progress(entry)
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers(entry).items())


def numbers(entry: Entry) -> dict[str, float]:
    """The numbers of a result that people compare: metrics of datasets, or whatever a command reported."""
    result = entry.result or {}
    source = result.get("after", result.get("best", result)) if entry.kind == "train" else result
    out: dict[str, float] = {}
    for name, value in source.items():
        if isinstance(value, dict):
            for metric, number in value.items():
                if isinstance(number, int | float) and not isinstance(number, bool):
                    out[metric if len(source) == 1 else f"{name}/{metric}"] = float(number)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            out[name] = float(value)
    return out


def _progress(entry: Entry) -> str:
    from lowmem.batch.progress import progress_of

    found = progress_of(entry)
    if found is None:
        return ""
    total = "" if found.total is None else f"/{found.total}"
    return f"step {found.step}{total}, loss {found.loss:.4f}, {found.tokens_per_second:,.0f} tok/s"


class LiveView:
    """A table that stays at the bottom of the terminal and is drawn anew at every look."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, entries: Sequence[Entry]) -> None:
        running = [entry for entry in entries if entry.state == "running"]
        ended = sorted((e for e in entries if e.ended and e.state != "running"), key=lambda e: e.ended or 0)
        self._live.update(Group(Text(counts(entries)), _table([*running, *ended[-ENDED_SHOWN:]])), refresh=True)


def _table(entries: Sequence[Entry]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in COLUMNS:
        table.add_column(name, no_wrap=name != "result", overflow="ellipsis")
    for entry in entries:
        cells = row(entry)
        table.add_row(cells[0], Text(cells[1], style=COLORS.get(entry.state, "")), *map(Text, cells[2:]))
    return table


class PlainView:
    """A line whenever a job changes its state."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._states: dict[str, tuple[str, int]] | None = None

    def __call__(self, entries: Sequence[Entry]) -> None:
        now = {entry.name: (str(entry.state), entry.attempts) for entry in entries}
        for entry in entries:
            before = (self._states or {}).get(entry.name, ("waiting", 0))
            if now[entry.name] != before and entry.state != "waiting":
                cells = row(entry)
                detail = "" if entry.state == "running" else f"  {cells[2]}  {cells[5]}".rstrip()
                self._stream.write(f"{entry.name}: {cells[1]}{detail}\n")
        self._stream.flush()
        self._states = now
