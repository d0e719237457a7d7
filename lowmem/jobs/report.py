"""`lowmem report`: run folders and batches in, one comparison out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from lowmem.batch.attempt import last_lines
from lowmem.batch.ledger import Entry
from lowmem.errors import ConfigError
from lowmem.jobs.batch import status
from lowmem.report.compare import Subject, subject_of
from lowmem.report.compare_page import comparison_page
from lowmem.report.elements import write_whole

LOG_LINES = 12
CONFIG = "config.yaml"


def subjects(sources: Sequence[Path]) -> list[Subject]:
    """Every run of the folders and every job of the batch files, in order.

    Raises `ConfigError` for a source that is neither, and for two runs of one name in different folders.
    """
    found: list[Subject] = []
    for source in sources:
        if source.is_file() and source.suffix in (".yaml", ".yml"):
            found += [subject for entry in status(source) for subject in _job_and_trials(entry)]
        elif source.is_dir():
            found.append(subject_of(source))
        else:
            raise ConfigError(f"{source}: is neither a run folder nor a batch file; name runs/NAME or jobs.yaml")
    names = [subject.name for subject in found]
    return [
        dataclasses.replace(subject, name=f"{subject.name} ({number})") if names.count(subject.name) > 1 else subject
        for number, subject in enumerate(found, start=1)
    ]


def write_comparison(found: Sequence[Subject], output: Path, *, title: str) -> None:
    """The page is in file `output`."""
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, comparison_page(found, title=title))


def _job_and_trials(entry: Entry) -> list[Subject]:
    """The job; of a search, its trials besides, each a run of its own."""
    trials = (entry.result or {}).get("trials", [])
    rows = [_job(entry)]
    for trial in trials:
        folder = Path(trial["folder"])
        run = subject_of(folder) if (folder / CONFIG).is_file() else Subject("", "", settings=trial["settings"])
        state = "failed" if trial["error"] else "stopped early" if trial["stopped"] else "done"
        name = f"{entry.name}/{trial['name']}"
        rows.append(dataclasses.replace(run, name=name, state=state, error=trial["error"]))
    return rows


def _job(entry: Entry) -> Subject:
    """A job with what its run folder tells; memory is the whole process's, in the plan as measured."""
    folder = Path(entry.folder)
    trained = entry.kind == "train" and (folder / CONFIG).is_file()
    base = subject_of(folder) if trained else Subject(entry.name, "", settings=entry.point)
    failed = entry.error is not None and entry.state not in ("done", "running")
    log = last_lines(Path(entry.log), LOG_LINES) if failed and entry.log else []
    return dataclasses.replace(
        base,
        name=entry.name,
        state=entry.state.replace("_", " "),
        metrics=base.metrics or _numbers(entry),
        predicted_bytes=entry.predicted_bytes,
        peak_bytes=entry.peak_bytes or None,
        seconds=entry.seconds or None,
        error=entry.error if failed else None,
        last_lines=tuple(log),
    )


def _numbers(entry: Entry) -> dict[str, float]:
    """The metrics in a job's result: numbers by themselves, or by dataset."""
    result = entry.result or {}
    if "trials" in result:
        return {name: float(value) for name, value in result["best"].items() if _is_number(value)}
    nested = {name: value for name, value in result.items() if isinstance(value, dict)}
    if not nested:
        return {name: float(value) for name, value in result.items() if _is_number(value)}
    return {
        metric if len(nested) == 1 else f"{name}/{metric}": float(value)
        for name, metrics in nested.items()
        for metric, value in metrics.items()
        if _is_number(value)
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
