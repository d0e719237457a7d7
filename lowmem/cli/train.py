"""`lowmem train`: a config in, a run folder out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from lowmem.cli import render
from lowmem.cli.arguments import AsJson, Overrides, load_config, split_config
from lowmem.events import Notice, Sink
from lowmem.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from lowmem.config.run import RunConfig
    from lowmem.jobs.train import TrainReport

LATEST = "latest"


class Command(TyperCommand):
    """`--resume` takes the folder that follows it, if one does, as the checkpoint; else the latest is meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, with_checkpoint(args))


def with_checkpoint(args: list[str]) -> list[str]:
    """The arguments with a value at every bare `--resume`."""
    out: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg != "--resume":
            out.append(arg)
            continue
        following = next(rest, None)
        if following is not None and os.path.isdir(following):
            out.append(f"--resume={following}")
        else:
            out += [f"--resume={LATEST}", *([] if following is None else [following])]
    return out


def train(
    config: Annotated[
        str,
        typer.Argument(metavar="CONFIG", help="A YAML file, the name of a preset, or the first key=value."),
    ],
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="[CHECKPOINT]", help="Go on from a checkpoint folder; without one, from the run's latest."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that is in output_dir.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the resolved config and the first sample, and train nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a model as CONFIG says; `key=value` after it changes single keys.

    Examples: lowmem train tiny-demo · lowmem train run.yaml learning_rate=1e-4 method.lora_r=16 ·
    lowmem train run.yaml --resume · lowmem train model=smollm2-135m-instruct dataset=train.jsonl
    """
    name, changes = split_config(config, overrides)
    if resume is not None and overwrite:
        raise typer.BadParameter("--resume continues a run and --overwrite deletes it; give one of them")
    loaded = load_config(name, changes)
    with render.progress() as sink:
        for notice in loaded.notices:
            sink(Notice(notice))
        if dry_run:
            report = _dry_run(loaded.config, sink)
        else:
            report = _train(loaded.config, sink, _checkpoint(resume), overwrite)
    if as_json:
        render.result_json(report)
    elif dry_run:
        _show_dry_run(report)
    else:
        show_report(report)


def _checkpoint(resume: str | None) -> bool | Path:
    return resume is not None if resume in (None, LATEST) else Path(str(resume))


def _train(config: RunConfig, sink: Sink, resume: bool | Path, overwrite: bool) -> Any:
    from lowmem.jobs.train import train

    return train(config, sink=sink, resume=resume, overwrite=overwrite)


def _dry_run(config: RunConfig, sink: Sink) -> Any:
    from lowmem.jobs.train import dry_run

    return dry_run(config, sink=sink)


def _show_dry_run(report: Any) -> None:
    render.result(report.config_yaml)
    render.result("# First sample; what carries loss is marked:")
    render.result("\n".join(f"# {line}" for line in report.preview.splitlines()))
    for name, value in report.batches.items():
        render.result(f"# {name}: {value:,g}")


def show_report(report: TrainReport) -> None:
    """Metrics before and after, what it took, and what to type next."""
    render.metrics(report.before, report.after)
    taken = f"{report.steps} steps in {format_seconds(report.seconds)}, peak memory {format_bytes(report.peak_bytes)}"
    render.result(f"\n{report.reason}: {taken}\nrun folder: {report.output_dir}")
    render.message(f"next: lowmem chat {report.output_dir}")
