"""`lowmem eval`: the metrics of a model or a run on some datasets."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lowmem.cli import render
from lowmem.cli.arguments import AsJson, Device, FallbackTo, Overrides, Target, check_device, rescue_for

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
    reasoning: Annotated[
        bool, typer.Option("--reasoning", help="Label every trace: where its answer was lost, and what it cost.")
    ] = False,
    traces: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --reasoning: every labelled trace, one JSON object a line."),
    ] = None,
    fallback: FallbackTo = None,
    lm_eval: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="A task of EleutherAI's lm-eval, or a task file; may be repeated."),
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Evaluate a model or a run: loss and perplexity, accuracy of tasks, exact match where answers can be verified.

    `key=value` changes keys of the run's config: max_length=1024, per_device_eval_batch_size=16,
    eval_generate=false, generation.max_new_tokens=64.

    Examples: lowmem eval runs/sst2 --dataset validation.jsonl --task sst2 ·
    lowmem eval runs/math --reasoning --dataset test.jsonl generation.on_loop=rescue ·
    lowmem eval runs/demo --lm-eval arc_easy --limit 100
    """
    _check_kinds(reasoning=reasoning, traces=traces, fallback=fallback, tasks=lm_eval, dataset=dataset)
    given = {"format": format, "task": task, "subset": subset, "split": split}
    keys = {key: value for key, value in given.items() if value is not None}
    if keys and not dataset:
        raise typer.BadParameter(f"--{next(iter(keys))} says how to read a --dataset; name one")
    changes = list(overrides or ())
    if dataset:
        sections = [dataset_keys(name, keys) for name in dataset]
        changes.insert(0, f"eval_dataset={json.dumps(sections, ensure_ascii=False)}")
    config = _config(target, changes)
    if lm_eval:
        _tasks(target, lm_eval, config, limit=limit, device=device, as_json=as_json)
        return
    if reasoning:
        _reasoning(target, config, limit=limit, traces=traces, fallback=fallback, device=device, as_json=as_json)
        return
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


def _check_kinds(
    *, reasoning: bool, traces: Path | None, fallback: str | None, tasks: list[str] | None, dataset: list[str] | None
) -> None:
    """Raises `typer.BadParameter` for options that do not go together."""
    if not reasoning and (traces is not None or fallback is not None):
        raise typer.BadParameter("--traces and --fallback belong to --reasoning; add it")
    if tasks and (reasoning or dataset):
        other = "--reasoning" if reasoning else "--dataset"
        raise typer.BadParameter(f"--lm-eval brings its own data; leave {other} out, or run it by itself")


def _reasoning(
    target: str,
    config: RunConfig,
    *,
    limit: int | None,
    traces: Path | None,
    fallback: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Answers every problem and shows what became of the traces."""
    from lowmem.jobs.reasoning import evaluate_reasoning

    said = config.generation.on_loop if "on_loop" in config.generation.model_fields_set else None
    on_loop = rescue_for(fallback, said) or config.generation.on_loop
    with render.progress() as sink:
        found = evaluate_reasoning(
            target,
            config.eval_dataset,
            batch_size=config.per_device_eval_batch_size,
            limit=limit or config.eval_limit,
            max_length=config.max_length,
            dtype=config.dtype,
            generation=config.generation.model_copy(update={"on_loop": on_loop}),
            fallback=fallback,
            traces=traces,
            device=check_device(device),
            sink=sink,
        )
    if as_json:
        render.result_json(found)
        return
    from lowmem.report.reasoning import COLUMNS, cells, rates

    for name, report in found.items():
        content = dataclasses.asdict(report)
        render.table([title for _, title, _ in COLUMNS], [cells(row) for row in content["rows"]], title=name)
        render.result(rates(content))


def _tasks(target: str, tasks: list[str], config: RunConfig, *, limit: int | None, device: str, as_json: bool) -> None:
    """The metrics of lm-eval's tasks."""
    from lowmem.jobs.lm_eval import evaluate_tasks

    with render.progress() as sink:
        found = evaluate_tasks(
            target,
            tasks,
            limit=limit,
            batch_size=config.per_device_eval_batch_size,
            device=check_device(device),
            dtype=config.dtype,
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
