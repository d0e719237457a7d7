"""The only place that draws. stdout carries results, stderr progress and messages; no ANSI outside a terminal."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lowmem.cli.progress import LiveProgress, PlainProgress
from lowmem.events import Sink

PLAIN_WIDTH = 200  # a pipe has no edge to wrap at


def error(text: str) -> None:
    """`error: …` on stderr."""
    _write_error(Text.assemble(("error:", "bold red"), " ", text))


def message(text: str) -> None:
    """A line for the person at the terminal, on stderr."""
    _write_error(Text(text))


def result(text: str) -> None:
    """Text on stdout exactly as it is."""
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")


def piece(text: str) -> None:
    """A part of an answer on stdout, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def result_json(value: object) -> None:
    """One JSON document on stdout; paths as text, numbers that JSON lacks as null."""
    sys.stdout.write(json.dumps(_plain(value), indent=2, ensure_ascii=False) + "\n")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> None:
    """Aligned columns on stdout; all but the first are right-aligned where they hold numbers."""
    drawn = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for index, name in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[index]) for row in rows)
        drawn.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    console = console_of(sys.stdout)
    with console.capture() as capture:
        console.print(drawn)
    result("\n".join(line.rstrip() for line in capture.get().splitlines()))


def metrics(before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]) -> None:
    """A table of metrics by dataset; with `before`, both values and the change."""
    rows = []
    for name, values in after.items():
        for key, value in values.items():
            old = before.get(name, {}).get(key)
            change = [] if not before else ["-", "-"] if old is None else [_number(old), f"{value - old:+.4g}"]
            rows.append([name, key, *change[:1], _number(value), *change[1:]])
    columns = ["dataset", "metric", "before", "after", "change"] if before else ["dataset", "metric", "value"]
    table(columns, rows)


@contextmanager
def progress() -> Iterator[Sink]:
    """Events drawn on stderr: a bar on a terminal, else one line now and then."""
    console = console_of(sys.stderr)
    if not console.is_terminal:
        yield PlainProgress(sys.stderr)
        return
    with LiveProgress(console) as live:
        yield live


def console_of(stream: Any) -> Console:
    terminal = stream.isatty()
    return Console(file=stream, force_terminal=terminal, width=None if terminal else PLAIN_WIDTH, highlight=False)


def _write_error(text: Text) -> None:
    console = console_of(sys.stderr)
    if console.is_terminal:
        console.print(text, soft_wrap=True)
    else:
        sys.stderr.write(f"{text.plain}\n")


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.replace(",", "").replace(".", "").lstrip("+-").replace("e", "").isdigit()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value - value != 0:  # NaN and the infinities
        return None
    return str(value) if isinstance(value, Path) else value
