"""`lowmem batch`: many runs from one file, surviving crashes, packed by memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lowmem.cli import render
from lowmem.cli.arguments import AsJson
from lowmem.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowmem.batch.ledger import Entry
    from lowmem.jobs.batch import Prepared

File = Annotated[Path, typer.Argument(metavar="JOBS.YAML", help="The batch; `lowmem init --batch` prints one.")]
Jobs = Annotated[
    list[str] | None, typer.Argument(metavar="JOB", help="Names of jobs; `tune-*` and `tag:quick` name several.")
]

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""Every complaint about a command line, of the click that typer uses: a package, or in newer versions its own."""

app = typer.Typer(name="batch", help="Run many jobs from one file.", no_args_is_help=True)


@app.command("run")
def run(
    file: File,
    budget: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory for all running jobs together. [default: the file's]")
    ] = None,
    max_parallel: Annotated[int | None, typer.Option(min=1, help="Jobs at a time. [default: the file's]")] = None,
    partly: Annotated[
        bool, typer.Option("--partly", help="Run without the jobs that cannot fit, instead of refusing all.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and plan every job, and start none.")] = False,
    engine: Annotated[
        str, typer.Option(metavar="local|ray", help="Where jobs run: on this machine, or on a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="With --engine ray: the cluster to join. [default: start one here]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run every job of the file that is not done yet, several at a time where memory allows.

    All jobs are checked and planned before the first one starts. Jobs that are done stay done, those whose settings
    changed run again, and those that failed wait for `lowmem batch retry`. Ctrl-C stops gently: training saves a
    checkpoint, and the same command goes on from there, as it does after a crash or a reboot.
    """
    if engine not in ("local", "ray") or (address is not None and engine != "ray"):
        raise typer.BadParameter("--engine is local or ray, and --address belongs to --engine ray")
    from lowmem.jobs.batch import prepare, refuse_too_large, run_on_ray
    from lowmem.jobs.batch import run as run_here

    with render.progress() as sink:
        prepared = prepare(file, sink=sink, budget=budget, check=check_verb)
    if dry_run:
        _show_plan(prepared, as_json=as_json)
        refuse_too_large(prepared, partly=partly)
        return
    with view() as watch:
        if engine == "ray":
            entries = run_on_ray(prepared, address=address, watch=watch, max_parallel=max_parallel, partly=partly)
        else:
            entries = run_here(prepared, watch=watch, max_parallel=max_parallel, partly=partly)
    _show(entries, as_json=as_json)
    failed = [entry.name for entry in entries if entry.state == "failed"]
    if failed:
        render.message(
            f"failed: {', '.join(failed)}; see `lowmem batch logs {file} {failed[0]}`, then `lowmem batch retry {file} "
            "--failed`"
        )
    if any(entry.state != "done" for entry in entries):
        raise typer.Exit(1)


@app.command("status")
def status(
    file: File,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing it until every job is over.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show every job: its state, time, memory and result."""
    from lowmem.jobs.batch import status as read_status

    if not watch:
        _show(read_status(file), as_json=as_json)
        return
    with view() as show:
        entries = read_status(file)
        while any(entry.state in ("waiting", "running") for entry in entries):
            show(entries)
            time.sleep(0.5)
            entries = read_status(file)
    _show(entries, as_json=as_json)


@app.command("logs")
def logs(
    file: File,
    job: Annotated[str, typer.Argument(metavar="JOB", help="The name of a job.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show what is written until the job ends.")] = False,
    attempt: Annotated[int | None, typer.Option(min=1, help="An earlier attempt. [default: the latest]")] = None,
) -> None:
    """Print what a job wrote to its terminal."""
    from lowmem.jobs.batch import log_path, status

    path = log_path(file, job, attempt=attempt)
    with path.open(errors="replace") as log:
        while True:
            render.piece(log.read())
            entry = next(entry for entry in status(file) if entry.name == job)
            if not follow or entry.state != "running":
                render.piece(log.read())
                return
            time.sleep(0.3)


@app.command("cancel")
def cancel(file: File, jobs: Jobs = None) -> None:
    """Stop jobs that run and never start those that wait. Training saves a checkpoint first."""
    from lowmem.jobs.batch import cancel as cancel_jobs

    if not jobs:
        raise typer.BadParameter("name the jobs to cancel; '*' is all of them", param_hint="JOB")
    render.message(f"cancelled: {', '.join(cancel_jobs(file, jobs))}")


@app.command("retry")
def retry(
    file: File,
    jobs: Jobs = None,
    failed: Annotated[bool, typer.Option("--failed", help="All jobs that failed.")] = False,
) -> None:
    """Let jobs that failed or were cancelled wait for the next run. Training goes on from its last checkpoint."""
    from lowmem.jobs.batch import retry as retry_jobs

    names = retry_jobs(file, jobs or [], failed=failed)
    render.message(f"waiting again: {', '.join(names)}; next: lowmem batch run {file}")


@app.command("export")
def export(
    file: File,
    to: Annotated[str, typer.Option(metavar="slurm|skypilot", help="The scheduler.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder for the scripts and configs.")],
    gpus: Annotated[int, typer.Option(min=0, help="Slurm: GPUs for each job.")] = 0,
    gpu: Annotated[str | None, typer.Option(metavar="NAME:COUNT", help="SkyPilot: accelerators for each job.")] = None,
) -> None:
    """Write the batch as Slurm array scripts or SkyPilot pipelines, every job checked and planned first.

    Example: lowmem batch export jobs.yaml --to slurm -o scripts && scripts/submit.sh
    """
    from lowmem.jobs.batch import prepare
    from lowmem.jobs.batch_move import export as write_files

    with render.progress() as sink:
        prepared = prepare(file, sink=sink, check=check_verb)
    files = write_files(prepared, output, to=to, gpus=gpus, gpu=gpu)
    render.message(f"wrote {len(files)} files; next: {'bash' if to == 'slurm' else 'sky jobs launch'} {files[0]}")


@app.command("import")
def import_(
    file: File,
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders that were trained elsewhere.")],
) -> None:
    """Copy finished run folders from elsewhere to where their jobs belong, so that they need not run here."""
    from lowmem.jobs.batch import prepare
    from lowmem.jobs.batch_move import import_runs

    with render.progress() as sink:
        prepared = prepare(file, sink=sink)
    found = import_runs(prepared, runs)
    render.table(["run", "job", ""], [[str(row.folder), row.job or "-", row.reason] for row in found])
    if any(row.reason != "imported" for row in found):
        raise typer.Exit(1)


def check_verb(argv: Sequence[str]) -> None:
    """Raises `ConfigError` unless the verb takes these arguments."""
    from typer.core import TyperGroup

    from lowmem.cli.app import app as verbs

    group = typer.main.get_command(verbs)
    assert isinstance(group, TyperGroup)
    try:
        group.commands[argv[0]].make_context(argv[0], list(argv[1:]))
    except UsageError as error:
        raise ConfigError(f"{argv[0]}: {error}") from error


@contextmanager
def view() -> Iterator[Callable[[Sequence[Entry]], None]]:
    from lowmem.cli.batch_view import LiveView, PlainView

    console = render.console_of(sys.stderr)
    if not console.is_terminal:
        yield PlainView(sys.stderr)
        return
    with LiveView(console) as live:
        yield live


def _show(entries: Sequence[Entry], *, as_json: bool) -> None:
    from lowmem.cli.batch_view import COLUMNS, counts, row

    if as_json:
        render.result_json(entries)
        return
    render.table(COLUMNS, [row(entry) for entry in entries])
    render.result(f"\n{counts(entries)}")


def _show_plan(prepared: Prepared, *, as_json: bool) -> None:
    from lowmem.units import format_bytes

    if as_json:
        render.result_json([task.listing() for task in prepared.tasks.values()])
        return
    rows = [
        [
            task.job.name,
            task.job.kind,
            "-" if task.need is None else format_bytes(task.need),
            ", ".join(task.job.after) or "-",
            "does not fit" if task.too_large else "fits",
        ]
        for task in prepared.tasks.values()
    ]
    render.table(["job", "kind", "memory", "after", f"in {format_bytes(prepared.budget)}"], rows)
