"""Drawings of several runs: their losses over each other, and their quality against their memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lowmem.report.compare import Subject, falls, frontier
from lowmem.report.figures import MARKS, PALETTE, VARIABLES, Chart, Curve, Series, chart_of, finite_curve, svg_of
from lowmem.report.summary import number, of_kind, whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = 2 * len(PALETTE)
"""Runs drawn in one chart: each colour once as a line and once dashed. More cannot be told apart."""


def overlaid(subjects: Sequence[Subject]) -> list[Chart]:
    """Training and evaluation loss of all runs that have steps, over steps and over time."""
    having = [subject for subject in subjects if of_kind(list(subject.records), "StepDone")]
    drawn = [
        chart_of("compare-loss", "Training loss", [_training(s, i) for i, s in enumerate(having[:CURVES])]),
        chart_of("compare-eval", "Evaluation loss", [_evaluation(s, i) for i, s in enumerate(having[:CURVES])]),
    ]
    left = len(having) - CURVES
    note = (f"{left} more runs are in the table only.",) if left > 0 else ()
    return [_noted(chart, note) for chart in drawn if chart is not None]


def pareto(subjects: Sequence[Subject], metric: str) -> Chart | None:
    """Quality against measured peak memory, the runs that nothing beats joined; None for fewer than two."""
    placed = [s for s in subjects if s.peak_bytes and metric in s.metrics]
    kept = frontier(subjects, metric)
    if len(placed) < 2 or not kept:
        return None
    largest = max(s.peak_bytes or 0 for s in placed)
    unit, scale = ("GiB", 2**30) if largest >= 2**30 else ("MiB", 2**20)
    legend = []

    def draw(axes: Axes) -> None:
        joined = [((s.peak_bytes or 0) / scale, s.metrics[metric]) for s in kept]
        axes.plot(*zip(*joined, strict=True), color=PALETTE[0], linewidth=1.2, drawstyle="steps-post", alpha=0.6)
        for index, subject in enumerate(placed, start=1):
            best = subject in kept
            color = PALETTE[0] if best else PALETTE[5]
            x, y = (subject.peak_bytes or 0) / scale, subject.metrics[metric]
            axes.plot([x], [y], MARKS[0][0] if best else MARKS[1][0], color=color, markersize=6)
            axes.annotate(str(index), (x, y), xytext=(5, 5), textcoords="offset points", color=color, fontsize=10)
            legend.append(Series(f"{index} {subject.name}", MARKS[0][1] if best else MARKS[1][1], VARIABLES[color]))
        axes.set_ylabel("quality")
        axes.margins(0.12)

    better = "lower" if falls(metric) else "higher"
    said = "; ".join(f"{s.name}: {s.metrics[metric]:.4g} in {(s.peak_bytes or 0) / scale:.4g} {unit}" for s in kept)
    drawing = svg_of(draw, "compare-pareto", x=f"peak memory, {unit}")
    notes = (f"Quality is {metric}, {better} is better. Round marks: nothing is better with less memory.",)
    return Chart("Quality and memory", drawing, f"Not beaten by any: {said}.", tuple(legend), notes)


def _training(subject: Subject, index: int) -> Curve:
    steps = of_kind(list(subject.records), "StepDone")
    pairs = [(whole(record.get("step")), number(record.get("loss"))) for record in steps]
    return finite_curve(subject.name, pairs, "line" if index < len(PALETTE) else "dashed")


def _evaluation(subject: Subject, index: int) -> Curve:
    """The loss of the first dataset that was evaluated."""
    found = of_kind(list(subject.records), "EvalDone")
    first = str(found[0].get("split")).partition(":")[2] if found else ""
    own = [record for record in found if str(record.get("split")).partition(":")[2] == first]
    pairs = [(whole(r.get("step")), number((r.get("metrics") or {}).get("loss"))) for r in own]
    return finite_curve(subject.name, pairs, "line" if index < len(PALETTE) else "dashed")


def _noted(chart: Chart, notes: tuple[str, ...]) -> Chart:
    return Chart(chart.title, chart.svg, chart.description, chart.legend, (*chart.notes, *notes))
