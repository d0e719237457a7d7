"""What a run comes to, in words and numbers: pure functions of its config and its records."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any, Literal

from lowmem.errors import ConfigError
from lowmem.report.run_folder import PhaseMemory, Record, RunFolder
from lowmem.units import format_bytes, format_seconds, parse_bytes

MEMORY_TOLERANCE = 0.02
"""A prediction that misses by more is a bug in the plan, and the report says so."""

Verdict = Literal["better", "worse", "unchanged", "unknown"]


@dataclass(frozen=True)
class Change:
    """One metric of one dataset, before the first step and at the last evaluation."""

    dataset: str
    metric: str
    before: float | None
    after: float | None

    @property
    def difference(self) -> float | None:
        if self.before is None or self.after is None or not math.isfinite(self.after - self.before):
            return None
        return self.after - self.before

    @property
    def falls(self) -> bool:
        """Whether less is better: a loss or a perplexity, as for `metric_for_best_model`."""
        return self.metric.endswith(("loss", "perplexity"))

    @property
    def verdict(self) -> Verdict:
        difference = self.difference
        if difference is None:
            return "unknown"
        if difference == 0:
            return "unchanged"
        return "better" if (difference < 0) == self.falls else "worse"


def number(value: Any) -> float:
    """The number a record holds: "nan" and "inf" are written as text, and what is no number counts as NaN."""
    if isinstance(value, int | float) or value in ("nan", "inf", "-inf"):
        return float(value)
    return math.nan


def whole(value: Any) -> int:
    """The whole number a record holds, 0 when it holds none."""
    read = number(value)
    return int(read) if math.isfinite(read) else 0


def of_kind(records: list[Record], kind: str) -> list[Record]:
    return [record for record in records if record["event"] == kind]


def changes(records: list[Record]) -> list[Change]:
    """Every metric of every dataset: first evaluation "before", and the last one there is after it."""
    before: dict[tuple[str, str], float] = {}
    after: dict[tuple[str, str], float] = {}
    for record in of_kind(records, "EvalDone"):
        split, _, dataset = str(record.get("split")).partition(":")
        target = before if split == "before" else after
        target |= {(dataset, name): number(value) for name, value in (record.get("metrics") or {}).items()}
    keys = dict.fromkeys([*before, *after])
    return [Change(*key, before.get(key), after.get(key)) for key in keys]


def sentence(run: RunFolder) -> str:
    """What was trained, on what, how, and what it changed."""
    started = of_kind(run.records, "RunStarted")
    method = str(started[-1].get("method")) if started else _method_of(run.config)
    model = run.config.get("model", "a model that is not recorded")
    text = f"{method[:1].upper()}{method[1:]} on {model}, trained on {_datasets(run.config)}"
    change = _deciding(run)
    if change is None:
        return f"{text}. No evaluation was recorded, so nothing is known about the result."
    where = f"{change.metric} on {change.dataset}"
    if change.before is None or change.after is None:
        only = "before training" if change.after is None else "after training"
        known = change.before if change.after is None else change.after
        return f"{text}: {where} was {figure(known)} {only}."
    judged = "" if change.verdict == "unknown" else f" ({change.verdict})"
    return f"{text}: {where} {figure(change.before)} → {figure(change.after)}{judged}."


def ending(records: list[Record]) -> str | None:
    """Why the last start of the run ended: "completed", "early_stopping", "interrupted"; None when it did not."""
    reason = None
    for record in records:
        match record["event"]:
            case "RunStarted":
                reason = None
            case "RunFinished":
                reason = str(record.get("reason"))
    return reason


def status(run: RunFolder) -> str:
    """How the run ended, or where it was last seen."""
    started = of_kind(run.records, "RunStarted")
    if not started:
        return "No start was recorded."
    seen = [*of_kind(run.records, "StepDone"), *of_kind(run.records, "RunFinished")]
    last = max((whole(record.get("step")) for record in seen), default=whole(started[-1].get("start_step")))
    progress = f"step {last} of {started[-1].get('total_steps')}"
    match ending(run.records):
        case "completed":
            return f"Completed: {progress}."
        case "early_stopping":
            return f"Stopped early after {progress}: the evaluations no longer improved."
        case "interrupted":
            where = f"Interrupted after {progress}"
        case _:
            where = f"Not finished: the last record is of {progress}"
    saved = of_kind(run.records, "CheckpointSaved")
    if not saved:
        return f"{where}. No checkpoint was written."
    return f"{where}. The newest checkpoint is {saved[-1].get('folder')}; continue with --resume."


def facts(run: RunFolder) -> list[tuple[str, str]]:
    """The numbers people ask for first, each with its name."""
    steps, started = of_kind(run.records, "StepDone"), of_kind(run.records, "RunStarted")
    found: list[tuple[str, str]] = []
    if started:
        trained, total = (whole(started[-1].get(f"{n}_parameters")) for n in ("trainable", "total"))
        share = f" ({trained / total:.2%} of {count(total)})" if total else ""
        found.append(("Trained parameters", f"{count(trained)}{share}"))
    if steps:
        speeds = [s for r in steps if math.isfinite(s := number(r.get("tokens_per_second")))]
        seconds = sum(s for r in steps if math.isfinite(s := number(r.get("seconds"))))
        found.append(("Steps", f"{steps[-1].get('step')} in {format_seconds(seconds)}"))
        found.append(("Tokens", count(whole(steps[-1].get("tokens")))))
        if speeds:
            found.append(("Speed", f"{statistics.median(speeds):,.0f} tokens/s"))
    peak = peak_bytes(run.records)
    if peak:
        found.append(("Peak memory", format_bytes(peak) + _of_budget(peak, run.config.get("memory_budget"))))
    return found


def peak_bytes(records: list[Record]) -> int:
    """The largest peak that any step or end recorded; 0 when none did."""
    return max((whole(record.get("peak_bytes")) for record in records), default=0)


def miss(phase: PhaseMemory) -> float | None:
    """Measured over predicted, minus one; None without a prediction."""
    return phase.measured / phase.predicted - 1 if phase.predicted else None


def figure(value: float | None) -> str:
    """Four significant digits."""
    return "–" if value is None else f"{value:.4g}"


def signed(change: Change) -> str:
    """The difference: `-0.52 (-21.4%)` of a loss; of a share, whose percents would be read as points, `+0.32`."""
    if change.difference is None or change.before is None:
        return "–"
    relative = f" ({change.difference / abs(change.before):+.1%})" if change.before and change.falls else ""
    return f"{change.difference:+.4g}{relative}"


def count(value: int) -> str:
    """`134.5 M` of a number of parameters or tokens."""
    for unit, scale in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= scale:
            return f"{value / scale:.4g} {unit}"
    return str(value)


def _deciding(run: RunFolder) -> Change | None:
    """The metric that chose the best model, of the first dataset; else its loss; else whatever there is."""
    found = changes(run.records)
    first = [change for change in found if change.dataset == found[0].dataset]
    wanted = (run.config.get("metric_for_best_model"), "loss")
    by_name = {change.metric: change for change in first}
    return next((by_name[name] for name in wanted if name in by_name), first[0] if first else None)


def _method_of(config: Record) -> str:
    method = config.get("method")
    return str(method.get("kind")) if isinstance(method, dict) else "A method that is not recorded"


def _datasets(config: Record) -> str:
    entries = config.get("dataset")
    names = [_dataset_name(entry) for entry in entries] if isinstance(entries, list) else []
    return ", ".join(names) or "data that is not recorded"


def _dataset_name(entry: Any) -> str:
    """The end of a path, with its subset or task; the family of generated problems."""
    if not isinstance(entry, dict):
        return str(entry)
    path = str(entry.get("family") or entry.get("path") or entry.get("format"))
    name = "/".join([part for part in path.split("/") if part][-2:])
    detail = entry.get("task") or entry.get("subset")
    return f"{name} ({detail})" if detail else name


def _of_budget(peak: int, budget: Any) -> str:
    if budget is None:
        return ""
    try:
        allowed = parse_bytes(budget)
    except ConfigError:
        return f" of {budget}"
    return f" of {format_bytes(allowed)}" + (", over budget" if peak > allowed else "")
