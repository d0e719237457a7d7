"""`lowmem diagnose`: what training does beside what it was for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lowmem.cli import render
from lowmem.cli.arguments import AsJson, Overrides, load_config
from lowmem.cli.batch import check_verb, view
from lowmem.events import Notice

if TYPE_CHECKING:
    from lowmem.diagnose.forgetting import Spread
    from lowmem.jobs.diagnose import ForgettingReport

app = typer.Typer(name="diagnose", help="What training does to a model beside its task.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `forgetting` a verb of its own while it is the only one."""


@app.command("forgetting")
def forgetting(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file with a grid, or the name of a preset.")],
    overrides: Overrides = None,
    max_parallel: Annotated[int | None, typer.Option(min=1, help="Runs at a time. [default: one for each CPU]")] = None,
    as_json: AsJson = False,
) -> None:
    """Train every arm of CONFIG's `forgetting` over its learning rates; compare what they forget at equal learning.

    The first eval_dataset is the new task, the others are the old distribution. Ctrl-C stops gently, and the same
    command goes on from there.

    Example: lowmem diagnose forgetting tiny-forgetting
    """
    loaded = load_config(config, list(overrides or ()))
    from lowmem.jobs.diagnose import forgetting as run

    with render.progress() as sink, view() as watch:
        for notice in loaded.notices:
            sink(Notice(notice))
        report = run(loaded.config, sink=sink, watch=watch, check=check_verb, max_parallel=max_parallel)
    if as_json:
        render.result_json(report)
    else:
        _show(report)
    if report.failed:
        raise typer.Exit(1)


def _show(report: ForgettingReport) -> None:
    levels = [f"forgotten at {level:.3g}" for level in report.summary.levels]
    rows = [
        [arm.arm, str(arm.cells), f"{arm.most_learned:.4g}", *(_spread(found) for found in arm.matched)]
        for arm in report.summary.arms
    ]
    render.table(["arm", "runs", "most learned", *levels], rows)
    for name, reason in report.failed.items():
        render.message(f"{name}: {reason}")
    render.message(f"report: {report.page}")


def _spread(found: Spread | None) -> str:
    if found is None:
        return "-"
    return f"{found.mean:.4g}" + (f" ± {found.std:.2g}" if found.seeds > 1 else "")
