"""`lowmem batch export` and `import`: jobs out to another scheduler, run folders back into the ledger."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lowmem.batch.export import skypilot, slurm
from lowmem.batch.ledger import Ledger
from lowmem.batch.task import Task
from lowmem.config.load import load_run
from lowmem.config.yaml_source import parse_yaml, to_plain
from lowmem.errors import ConfigError
from lowmem.jobs.batch import Prepared, state_folder
from lowmem.jobs.folder import FREE_TO_CHANGE, write_atomically
from lowmem.report.run_folder import read_run_folder
from lowmem.report.summary import changes, ending, number, of_kind, peak_bytes, whole


def export(prepared: Prepared, output: Path, *, to: str, gpus: int = 0, gpu: str | None = None) -> list[Path]:
    """The batch as files in `output`, which must be empty or absent. Returns them; the first is the one to start."""
    name = prepared.file.path.stem
    if output.exists() and any(output.iterdir()):
        raise ConfigError(f"batch export: {output} is not empty; choose a new folder")
    match to:
        case "slurm":
            files = slurm(prepared.tasks, name=name, gpus=gpus)
        case "skypilot":
            files = skypilot(prepared.tasks, name=name, gpu=gpu)
        case _:
            raise ConfigError(f"batch export: --to {to} is none of slurm, skypilot")
    for path, text in files.items():
        (output / path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output / path, text)
    return [output / path for path in reversed(files)]


@dataclass(frozen=True)
class Imported:
    """What became of one folder; `reason` says why it was left."""

    folder: Path
    job: str | None
    reason: str


def import_runs(prepared: Prepared, folders: Sequence[Path]) -> list[Imported]:
    """Run folders from elsewhere are copied to where their jobs' folders are, and the ledger says that they are done.

    A folder belongs to the job whose folder has its name and whose config is the same in all that enters the weights.
    """
    ledger = Ledger(state_folder(prepared.file.path) / "ledger.db")
    try:
        ledger.take()
        ledger.list_jobs([task.listing() for task in prepared.tasks.values()])
        return [_import(ledger, prepared, folder) for folder in folders]
    finally:
        ledger.release()
        ledger.close()


def _import(ledger: Ledger, prepared: Prepared, folder: Path) -> Imported:
    run = read_run_folder(folder)
    task = next((t for t in prepared.tasks.values() if Path(t.job.output_dir).name == folder.resolve().name), None)
    if task is None or task.config is None:
        return Imported(folder, None, f"no training job of this batch has a folder named {folder.resolve().name}")
    name = task.job.name
    state = next(entry.state for entry in ledger.entries() if entry.name == name)
    if state in ("done", "running"):
        return Imported(folder, name, f"{name} is {state} already")
    if ending(run.records) not in ("completed", "early_stopping"):
        return Imported(folder, name, "the run is not finished")
    if different := _different(task, folder):
        return Imported(folder, name, f"the run's {', '.join(different)} differ from the job's")
    target = Path(task.job.output_dir)
    if target.resolve() != folder.resolve():
        if target.exists():
            return Imported(folder, name, f"{target} exists")
        partial = target.with_name(f".partial-{target.name}")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(folder, partial)
        partial.rename(target)
    after: dict[str, dict[str, float]] = {}
    for change in changes(run.records):
        if change.after is not None:
            after.setdefault(change.dataset, {})[change.metric] = change.after
    finished = of_kind(run.records, "RunFinished")
    ledger.import_done(
        name,
        result={"after": after, "steps": whole(finished[-1].get("step")), "reason": ending(run.records)},
        folder=str(target.absolute()),
        peak_bytes=peak_bytes(run.records),
        seconds=sum(number(record.get("seconds")) for record in finished),
    )
    return Imported(folder, name, "imported")


def _different(task: Task, folder: Path) -> list[str]:
    """Keys of the two configs that differ and enter the weights."""
    here = load_run(None, base=to_plain(parse_yaml(task.config or "", task.job.name))).config
    there = load_run(folder / "config.yaml").config
    return [
        key
        for key in type(here).model_fields
        if key not in FREE_TO_CHANGE and getattr(here, key) != getattr(there, key)
    ]
