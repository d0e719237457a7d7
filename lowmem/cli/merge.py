"""`lowmem merge`: a run's adapter folded into its base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lowmem.cli import render
from lowmem.cli.arguments import AsJson, Device, Target, check_device, check_dtype


def merge(
    target: Target,
    output: Annotated[Path, typer.Option("--output", "-o", help="The new folder.")],
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16. [default: the run's]")] = None,
    force: Annotated[bool, typer.Option("--force", help="Merge even if the loss rises by more than 2 %.")] = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Fold a run's adapter into its 16- or 32-bit base, and check on the run's samples that nothing was lost.

    Example: lowmem merge runs/sst2 -o merged/sst2
    """
    from lowmem.jobs.merge import merge as run_merge

    with render.progress() as sink:
        report = run_merge(
            target, output, dtype=check_dtype(dtype), device=check_device(device), force=force, sink=sink
        )
    if as_json:
        render.result_json(report)
    else:
        render.result(
            f"{report.folder}: loss {report.loss_before:.4f} as trained, {report.loss_after:.4f} merged "
            f"(KL {report.divergence:.2e}, {report.samples} samples)"
        )
