"""One self-contained page that sets runs beside each other: on a screen, on a phone, on paper."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lowmem.report.compare import Subject, best, differences, metric_names, setting
from lowmem.report.elements import curves, escaped, section, soft, table, td, th, whole_page
from lowmem.report.overlay import overlaid, pareto
from lowmem.report.summary import figure
from lowmem.units import format_bytes, format_seconds

METRICS_SHOWN = 8
_BAD = ("failed", "too large", "not finished")


def comparison_page(subjects: Sequence[Subject], *, title: str) -> str:
    """The page as text. Settings that are the same for all runs are left out: each run's own report has them."""
    failures = [subject for subject in subjects if subject.error]
    quality = next(iter(metric_names(subjects)), "loss")
    front = pareto(subjects, quality)
    drawn = [*([front] if front is not None else []), *overlaid(subjects)]
    sections = [
        _headline(subjects, title, quality),
        section("Results", _results(subjects)),
        section("Settings that differ", _settings(subjects)),
        curves(drawn) if drawn else "",
        section("Failures", "".join(map(_failure, failures))) if failures else "",
    ]
    return whole_page(f"{title} · lowmem", [part for part in sections if part])


def _headline(subjects: Sequence[Subject], title: str, quality: str) -> str:
    done = sum(subject.state == "done" for subject in subjects)
    top = best(subjects, quality)
    winner = next((s for s in subjects if top is not None and s.metrics.get(quality) == top), None)
    said = f"{done} of {len(subjects)} done."
    if winner is not None:
        said += f" Best {quality}: {figure(top)} by {winner.name}."
    mood = "status" if done == len(subjects) else "status unfinished"
    return f'<header><h1>{escaped(title)}</h1><p class="lead {mood}">{escaped(said)}</p></header>'


def _results(subjects: Sequence[Subject]) -> str:
    """A row for each: state, metrics, memory, speed and time. The best of a metric is marked by a sign."""
    metrics = metric_names(subjects)[:METRICS_SHOWN]
    tops = {metric: best(subjects, metric) for metric in metrics}
    rows = []
    for s in subjects:
        cells = [th(s.name), td(s.state, "bad" if s.state in _BAD else "")]
        for metric in metrics:
            value = s.metrics.get(metric)
            mark = " ★" if value is not None and value == tops[metric] else ""
            cells.append(td(f"{figure(value)}{mark}", "number"))
        cells += [
            td(_bytes(s.predicted_bytes), "number"),
            td(_bytes(s.peak_bytes) + _share(s), "number"),
            td("–" if s.tokens_per_second is None else f"{s.tokens_per_second:,.0f}", "number"),
            td("–" if not s.seconds or not math.isfinite(s.seconds) else format_seconds(s.seconds), "number"),
        ]
        rows.append(cells)
    heads = [*(f"#{escaped(metric)}" for metric in metrics), "#planned", "#measured peak"]
    return table(["run", "", *heads, "#tokens/s", "#time"], rows) + soft("★ is the best of its column.")


def _settings(subjects: Sequence[Subject]) -> str:
    keys = differences(subjects)
    having = [subject for subject in subjects if subject.settings]
    if not keys:
        return soft("There are none that are recorded.")
    rows = [[th(s.name), *(td(setting(s, key) or "–") for key in keys)] for s in having]
    return table(["run", *(escaped(key) for key in keys)], rows)


def _failure(subject: Subject) -> str:
    lines = "\n".join(subject.last_lines)
    log = f"<pre>{escaped(lines)}</pre>" if lines else ""
    head = f'<h3>{escaped(subject.name)}</h3><p class="bad">{escaped(subject.error or "")}</p>'
    return f'<article class="sample">{head}{log}</article>'


def _bytes(nbytes: int | None) -> str:
    return "–" if not nbytes else format_bytes(nbytes)


def _share(subject: Subject) -> str:
    """` (84%)` of what was planned."""
    if not subject.predicted_bytes or not subject.peak_bytes:
        return ""
    return f" ({subject.peak_bytes / subject.predicted_bytes:.0%})"
