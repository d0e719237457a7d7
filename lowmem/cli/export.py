"""`lowmem export`: a run or a model as other tools read it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lowmem.cli import render
from lowmem.cli.arguments import Target, check_dtype


def export(
    target: Target,
    output: Annotated[Path, typer.Option("--output", "-o", help="The new folder, or the new .gguf file.")],
    to: Annotated[str, typer.Option(metavar="hf|gguf", help="A transformers folder, or a 16-bit GGUF file.")] = "hf",
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16. [default: the run's]")] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A checkpoint of the run, in place of its result."),
    ] = None,
) -> None:
    """Write every weight of a run or a model for other tools. GGUF: Llama, Qwen2 and Qwen3 families.

    Example: lowmem export runs/sst2 --to gguf -o sst2.gguf
    """
    if to not in ("hf", "gguf"):
        raise typer.BadParameter(f"{to!r} is not a format; use hf or gguf", param_hint="--to")
    from lowmem.jobs.export import export as run_export

    with render.progress() as sink:
        path = run_export(
            target,
            output,
            to="gguf" if to == "gguf" else "hf",
            dtype=check_dtype(dtype),
            checkpoint=checkpoint,
            sink=sink,
        )
    render.result(str(path))
