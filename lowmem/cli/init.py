"""`lowmem init`: a commented config to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lowmem.cli import render

METHODS = ("lora", "qlora", "full", "adanaged", "mezo")
"""Those of `lowmem.jobs.init`, written again because importing it takes longer than `lowmem --help` may."""


def init(
    method: Annotated[str, typer.Option(metavar="|".join(METHODS), help="How to train.")] = "lora",
    model: Annotated[str, typer.Option(help="A hub id, a model folder or an embedded model.")] = "tiny-reasoner",
    dataset: Annotated[
        str, typer.Option(help="A file, a folder, a hub id, or the name of a procedural family.")
    ] = "sub",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this new file instead of stdout.")
    ] = None,
    batch: Annotated[
        bool, typer.Option("--batch", help="A batch instead: three learning rates of one config, and an evaluation.")
    ] = False,
) -> None:
    """Print a commented config that runs as it is; with --batch, a file of jobs for `lowmem batch run`.

    Examples: lowmem init --method mezo --model facebook/opt-1.3b --dataset train.jsonl > run.yaml ·
    lowmem init --batch > jobs.yaml
    """
    from lowmem.jobs.init import BATCH, DATASET, MODEL, init_yaml

    if batch and (method, model, dataset) != ("lora", MODEL, DATASET):
        raise typer.BadParameter("--batch prints jobs; --method, --model and --dataset belong to the config they name")
    text = BATCH if batch else init_yaml(method=method, model=model, dataset=dataset)
    if output is None:
        render.result(text)
        return
    try:
        with output.open("x") as file:
            file.write(text)
    except FileExistsError as error:
        raise typer.BadParameter(f"{output} exists and is left as it is; choose another name") from error
    render.message(f"wrote {output}; next: lowmem {'batch run' if batch else 'train'} {output}")
