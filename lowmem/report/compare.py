"""Runs beside each other: what differs in their settings, what came of them, and which are worth their memory."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowmem.report.run_folder import Record, RunFolder, read_run_folder
from lowmem.report.summary import changes, ending, number, of_kind, peak_bytes

NOT_COMPARED = frozenset({"output_dir", "run_name"})


@dataclass(frozen=True)
class Subject:
    """One run or job. `settings` are the leaves of its config, `metrics` those of its last evaluation; bytes."""

    name: str
    state: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    predicted_bytes: int | None = None
    peak_bytes: int | None = None
    tokens_per_second: float | None = None
    seconds: float | None = None
    error: str | None = None
    last_lines: tuple[str, ...] = ()
    records: Sequence[Record] = ()


def subject_of(folder: Path) -> Subject:
    """The run in `folder`. Raises `ConfigError` when there is none."""
    run = read_run_folder(folder)
    steps = of_kind(run.records, "StepDone")
    speeds = [s for record in steps if math.isfinite(s := number(record.get("tokens_per_second")))]
    predicted = [phase.predicted for phase in run.memory if phase.predicted is not None]
    measured = [phase.measured for phase in run.memory if phase.predicted is not None]
    end = ending(run.records)
    return Subject(
        name=str(run.config.get("run_name") or folder.name),
        state="done" if end in ("completed", "early_stopping") else end or "not finished",
        settings=_settings(run),
        metrics=metrics_of(run.records),
        predicted_bytes=max(predicted, default=None),
        peak_bytes=max(measured, default=peak_bytes(run.records) or None),
        tokens_per_second=statistics.median(speeds) if speeds else None,
        seconds=sum(number(record.get("seconds")) for record in of_kind(run.records, "RunFinished")) or None,
        records=run.records,
    )


def metrics_of(records: list[Record]) -> dict[str, float]:
    """The last value of every metric, under its dataset's name where there are several."""
    last = {(change.dataset, change.metric): change.after for change in changes(records) if change.after is not None}
    several = len({dataset for dataset, _ in last}) > 1
    return {f"{dataset}/{metric}" if several else metric: value for (dataset, metric), value in last.items()}


def differences(subjects: Sequence[Subject]) -> list[str]:
    """Settings of which those that have them hold several values, in the order in which they are written. What only
    one kind of method has is told by the kind."""
    keys = dict.fromkeys(key for subject in subjects for key in subject.settings)
    return [key for key in keys if len({_text(s.settings[key]) for s in subjects if key in s.settings}) > 1]


def metric_names(subjects: Sequence[Subject]) -> list[str]:
    """Every metric that one of them has, the losses first."""
    names = dict.fromkeys(name for subject in subjects for name in subject.metrics)
    return sorted(names, key=lambda name: (not falls(name), list(names).index(name)))


def falls(metric: str) -> bool:
    """Whether less is better."""
    return metric.endswith(("loss", "perplexity"))


def best(subjects: Sequence[Subject], metric: str) -> float | None:
    """The best finite value of a metric; None where there is nothing to choose between."""
    values = [s.metrics[metric] for s in subjects if metric in s.metrics and math.isfinite(s.metrics[metric])]
    if len(set(values)) < 2:
        return None
    return min(values) if falls(metric) else max(values)


def frontier(subjects: Sequence[Subject], metric: str) -> list[Subject]:
    """Those that no other one matches in quality with less memory, by memory."""
    placed = [s for s in subjects if s.peak_bytes and math.isfinite(s.metrics.get(metric, math.nan))]
    sign = 1 if falls(metric) else -1
    kept: list[Subject] = []
    for subject in sorted(placed, key=lambda s: (s.peak_bytes or 0, sign * s.metrics[metric])):
        if not kept or sign * subject.metrics[metric] < sign * kept[-1].metrics[metric]:
            kept.append(subject)
    return kept


def records_of(subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """The comparison as plain data: all numbers, and the settings that differ."""
    keys = differences(subjects)
    return [
        {
            "name": s.name,
            "state": s.state,
            "settings": {key: s.settings.get(key) for key in keys},
            "metrics": dict(s.metrics),
            "predicted_bytes": s.predicted_bytes,
            "peak_bytes": s.peak_bytes,
            "tokens_per_second": s.tokens_per_second,
            "seconds": s.seconds,
            "error": s.error,
        }
        for s in subjects
    ]


def csv_of(subjects: Sequence[Subject]) -> str:
    """The comparison as a table for a spreadsheet."""
    keys, metrics = differences(subjects), metric_names(subjects)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    plain = ("predicted_bytes", "peak_bytes", "tokens_per_second", "seconds", "error")
    writer.writerow(["name", "state", *keys, *metrics, *plain])
    for s in subjects:
        settings = [_text(s.settings.get(key)) for key in keys]
        writer.writerow(
            [s.name, s.state, *settings, *(s.metrics.get(m) for m in metrics), *(getattr(s, p) for p in plain)]
        )
    return out.getvalue()


def setting(subject: Subject, key: str) -> str:
    """A setting as it is shown; nothing where the run does not have it."""
    return _text(subject.settings.get(key))


def _settings(run: RunFolder) -> dict[str, Any]:
    return {key: value for key, value in _leaves(run.config, "") if key not in NOT_COMPARED}


def _leaves(tree: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        return [leaf for key, value in tree.items() for leaf in _leaves(value, f"{path}.{key}" if path else str(key))]
    if isinstance(tree, list) and tree and isinstance(tree[0], Mapping):
        return [leaf for i, value in enumerate(tree) for leaf in _leaves(value, f"{path}.{i}")]
    return [(path, tree)]


def _text(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case list() | tuple():
            return ", ".join(map(str, value))
        case _:
            return str(value)
