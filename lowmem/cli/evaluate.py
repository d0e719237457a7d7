"""`lowmem eval`: the metrics of a model or a run on some datasets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lowmem.cli import render
from lowmem.cli.arguments import AsJson, Device, Overrides, Target, check_device

if TYPE_CHECKING:
    from lowmem.config.run import RunConfig

RUN_CONFIG = "config.yaml"


def evaluate(
    target: Target,
    overrides: Overrides = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            help="A file, a folder, a hub id or a procedural family; may be repeated. [default: the run's eval_dataset]"
        ),
    ] = None,
    format: Annotated[str | None, typer.Option(help="Format of the datasets. [default: recognised]")] = None,
    task: Annotated[str | None, typer.Option(help="Prompted classification task: sst2, rte, boolq, …")] = None,
    subset: Annotated[str | None, typer.Option(help="Configuration name of a hub dataset.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a hub dataset, or of a folder.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use at most this many samples of each.")] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Evaluate a model or a run: loss and perplexity, accuracy of tasks, exact match where answers can be verified.

    `key=value` changes keys of the run's config: max_length=1024, per_device_eval_batch_size=16,
    eval_generate=false, generation.max_new_tokens=64.

    Example: lowmem eval runs/sst2 --dataset validation.jsonl --task sst2
    """
    given = {"format": format, "task": task, "subset": subset, "split": split}
    keys = {key: value for key, value in given.items() if value is not None}
    if keys and not dataset:
        raise typer.BadParameter(f"--{next(iter(keys))} says how to read a --dataset; name one")
    changes = list(overrides or ())
    if dataset:
        sections = [dataset_keys(name, keys) for name in dataset]
        changes.insert(0, f"eval_dataset={json.dumps(sections, ensure_ascii=False)}")
    config = _config(target, changes)
    from lowmem.jobs.evaluate import evaluate as run_evaluate

    with render.progress() as sink:
        found = run_evaluate(
            target,
            config.eval_dataset,
            batch_size=config.per_device_eval_batch_size,
            limit=limit or config.eval_limit,
            max_length=config.max_length,
            dtype=config.dtype,
            generation=config.generation,
            generate=config.eval_generate,
            device=check_device(device),
            sink=sink,
        )
    if as_json:
        render.result_json(found)
    else:
        render.metrics({}, found)


def dataset_keys(name: str, keys: dict[str, str]) -> dict[str, object]:
    """The section of a dataset that was named on the command line.

    A procedural family gets problems that no training with the default seed has seen.
    """
    from lowmem.data.procedural import families

    if name in families() and not os.path.exists(name) and not keys:
        return {"format": "procedural", "family": name, "size": 200, "data_seed": 1}
    return {"path": name, **keys}


def _config(target: str, changes: list[str]) -> RunConfig:
    """The run's own config, or the defaults for a model that is no run, under the changes."""
    from lowmem.config.load import load_run

    file = Path(target) / RUN_CONFIG
    if file.is_file():
        return load_run(file, changes).config
    # The schema wants training data; evaluation looks at eval_dataset only.
    unused = {"format": "procedural", "family": "add"}
    return load_run(None, changes, base={"model": target, "dataset": unused}).config
