"""`lowmem report`: runs beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lowmem.cli import render
from lowmem.cli.arguments import AsJson


def report(
    sources: Annotated[list[Path], typer.Argument(metavar="RUN_OR_JOBS.YAML...", help="Run folders and batch files.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PAGE.HTML", help="Write one self-contained page.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page. [default: the first source]")] = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the table for a spreadsheet.")] = False,
) -> None:
    """Compare runs: what differs in their settings, losses and metrics, memory planned and measured, speed, failures.

    Examples: lowmem report runs/a runs/b -o comparison.html · lowmem report jobs.yaml --csv > table.csv
    """
    if as_json and as_csv:
        raise typer.BadParameter("--json and --csv both print the table; give one of them")
    from lowmem.jobs.report import subjects, write_comparison
    from lowmem.report.compare import csv_of, records_of

    found = subjects(sources)
    if output is not None:
        write_comparison(found, output, title=title or sources[0].stem)
        render.message(f"wrote {output}")
    if as_json:
        render.result_json(records_of(found))
    elif as_csv:
        render.result(csv_of(found))
    elif output is None:
        _show(records_of(found))


def _show(rows: list[dict[str, object]]) -> None:
    from lowmem.units import format_bytes, format_seconds

    def cells(row: dict[str, object]) -> list[str]:
        metrics, peak, seconds = row["metrics"], row["peak_bytes"], row["seconds"]
        assert isinstance(metrics, dict)
        said = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        return [
            str(row["name"]),
            str(row["state"]),
            format_bytes(peak) if isinstance(peak, int) else "-",
            format_seconds(seconds) if isinstance(seconds, float) else "-",
            said or str(row["error"] or ""),
        ]

    render.table(["run", "state", "memory", "time", "result"], [cells(row) for row in rows])
