"""`lowmem demo`: a model that comes with the package learns something new, in a few minutes on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lowmem.cli import render
from lowmem.cli.arguments import AsJson
from lowmem.cli.train import show_report


def demo(
    output_dir: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/demo"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that is in it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Finetune the embedded model on a kind of problem it has never seen. Needs no network and no GPU."""
    from lowmem.jobs.demo import demo as run_demo

    with render.progress() as sink:
        report = run_demo(output_dir, overwrite=overwrite, sink=sink)
    if as_json:
        render.result_json(report)
    else:
        show_report(report)
