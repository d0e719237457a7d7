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
) -> None:
    """Print a commented config that runs as it is.

    Example: lowmem init --method mezo --model facebook/opt-1.3b --dataset train.jsonl > run.yaml
    """
    from lowmem.jobs.init import init_yaml

    text = init_yaml(method=method, model=model, dataset=dataset)
    if output is None:
        render.result(text)
        return
    try:
        with output.open("x") as file:
            file.write(text)
    except FileExistsError as error:
        raise typer.BadParameter(f"{output} exists and is left as it is; choose another name") from error
    render.message(f"wrote {output}; next: lowmem train {output}")
