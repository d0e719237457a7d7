"""Curves of a run as SVG text that can stand inside a page, in the page's own colours.

Drawn with matplotlib's objects, never with pyplot, whose figures are global. A chart holds only numbers and our own
words; names from the run are in the legend, which the page writes as text, so no name can reach the drawing.
Colours are the page's CSS variables with a light fallback. Every series also has a mark of its own, so nothing is said
by colour alone.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lowmem.report.run_folder import Record
from lowmem.report.summary import number, of_kind, peak_bytes, whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, GRID = "#333a45", "#d5dae2"
PALETTE = ("#0062a8", "#c04a00", "#007a59", "#9b3f80", "#7a5b00", "#5b5f97")
"""Distinguishable with every common colour blindness (Okabe-Ito's hues, darkened to 4.5:1 on white)."""
VARIABLES = {INK: "--ink", GRID: "--line"} | {color: f"--series-{i}" for i, color in enumerate(PALETTE, start=1)}
MARKS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"))
"""Marker of the drawing, and the sign that stands for it in the legend."""

POINTS = 150
"""More steps than this are drawn as that many means with the band of their range."""
WIDTH, HEIGHT = 5.2, 2.9
"""Inches. Narrow on purpose: on a phone the chart shrinks little, so its numbers stay readable."""


@dataclass(frozen=True)
class Series:
    """One entry of a legend: what it is, its sign, and the CSS variable of its colour."""

    label: str
    sign: str
    variable: str


@dataclass(frozen=True)
class Chart:
    """One drawing with the words that belong to it."""

    title: str
    svg: str
    description: str
    """What the drawing shows, for whoever cannot see it."""
    legend: tuple[Series, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Curve:
    """Finite values over steps. `style` is a line, a dashed line, or separate points."""

    label: str
    steps: list[int]
    values: list[float]
    style: Literal["line", "dashed", "points"] = "line"
    dropped: int = 0


def charts(records: list[Record]) -> list[Chart]:
    """Every curve the records have points for: loss, learning rate, memory, and what the method reports of itself."""
    steps = of_kind(records, "StepDone")

    def curve(label: str, read: Callable[[Record], Any], style: Literal["line", "dashed"] = "line") -> Curve:
        return finite_curve(label, [(whole(r.get("step")), number(read(r))) for r in steps], style)

    def detail(name: str, label: str, style: Literal["line", "dashed"] = "line") -> Curve:
        return curve(label, lambda r: (r.get("details") or {}).get(name, math.nan), style)

    unit, scale = ("GiB", 2**30) if peak_bytes(records) >= 2**30 else ("MiB", 2**20)
    memory = [
        curve("peak so far", lambda r: number(r.get("peak_bytes")) / scale, "dashed"),
        curve("held at the end of the step", lambda r: number(r.get("memory_bytes")) / scale),
    ]
    lengths = [detail("gamma", "step length (gamma)"), detail("radius", "probing radius", "dashed")]
    # A method reports a detail at every step or never, so a value that is absent was not lost.
    own = [_whole_curve(c) for c in (*lengths, detail("projected_grad", "slope"), detail("grad_norm", "norm"))]
    drawn = [
        chart_of(
            "loss", "Loss", [curve("training, before the update", lambda r: r.get("loss")), *_evaluations(records)]
        ),
        chart_of("lr", "Learning rate", [curve("learning rate", lambda r: r.get("lr"))], unit="rate", from_zero=True),
        chart_of("memory", "Memory", memory, unit=unit, from_zero=True),
        chart_of("lengths", "Step length and probing radius", own[:2], unit="length", log=True),
        chart_of("slope", "Projected gradient", own[2:3], unit="slope"),
        chart_of("norm", "Gradient norm", own[3:], unit="norm"),
    ]
    return [chart for chart in drawn if chart is not None]


def _evaluations(records: list[Record]) -> list[Curve]:
    """The loss of every evaluated dataset, in the order in which they were first seen."""
    points: dict[str, list[tuple[int, float]]] = {}
    for record in of_kind(records, "EvalDone"):
        dataset = str(record.get("split")).partition(":")[2] or str(record.get("split"))
        value = number((record.get("metrics") or {}).get("loss"))
        points.setdefault(dataset, []).append((whole(record.get("step")), value))
    return [finite_curve(f"evaluation: {name}", pairs, "points") for name, pairs in points.items()]


def finite_curve(label: str, pairs: list[tuple[int, float]], style: Literal["line", "dashed", "points"]) -> Curve:
    kept = [(step, value) for step, value in pairs if math.isfinite(value)]
    return Curve(label, [s for s, _ in kept], [v for _, v in kept], style, dropped=len(pairs) - len(kept))


def _whole_curve(curve: Curve) -> Curve:
    return Curve(curve.label, curve.steps, curve.values, curve.style)


def chart_of(
    name: str, title: str, curves: Sequence[Curve], *, unit: str = "loss", log: bool = False, from_zero: bool = False
) -> Chart | None:
    """The drawing of `curves`, None when no curve has a point."""
    notes = [f"{c.label}: {c.dropped} value(s) are not finite and not drawn." for c in curves if c.dropped]
    curves = [curve for curve in curves if curve.values]
    if not curves:
        return None
    values = [value for curve in curves for value in curve.values]
    log = min(values) > 0 and (log or (not from_zero and max(values) > 50 * min(values)))
    bucket = max(math.ceil(len(curve.steps) / POINTS) if curve.style != "points" else 1 for curve in curves)
    if bucket > 1:
        notes.append(f"Each point is the mean of {bucket} records, the band their range.")
    if log:
        notes.append("Logarithmic axis.")

    legend = []

    def draw(axes: Axes) -> None:
        for index, curve in enumerate(curves):
            color, (marker, sign) = PALETTE[index % len(PALETTE)], MARKS[index % len(MARKS)]
            _draw(axes, curve, color, marker)
            mark = {"line": "━━", "dashed": "╍╍", "points": sign}[curve.style]
            legend.append(Series(curve.label, mark, VARIABLES[color]))
        axes.set_ylabel(unit)
        if log:
            axes.set_yscale("log")
        elif from_zero and min(values) >= 0:
            axes.set_ylim(bottom=0)

    described = f"{title} over steps. " + "; ".join(_describe(curve, unit) for curve in curves)
    return Chart(title, svg_of(draw, name), f"{described}.", tuple(legend), tuple(notes))


def _draw(axes: Axes, curve: Curve, color: str, marker: str) -> None:
    if curve.style == "points":
        axes.plot(curve.steps, curve.values, marker, color=color, markersize=5, zorder=3)
        return
    steps, means, lows, highs = _buckets(curve.steps, curve.values)
    if len(steps) < len(curve.steps):
        axes.fill_between(steps, lows, highs, color=color, alpha=0.2, linewidth=0)
    line = "-" if curve.style == "line" else (0, (4, 2))
    dot = "." if len(steps) <= 30 else None
    axes.plot(steps, means, linestyle=line, color=color, linewidth=1.6, marker=dot, markersize=5)


def _buckets(steps: list[int], values: list[float]) -> tuple[list[float], list[float], list[float], list[float]]:
    """Step, mean, lowest and highest of at most `POINTS` runs of neighbours."""
    size = math.ceil(len(values) / POINTS)
    starts = range(0, len(values), size)
    groups = [values[start : start + size] for start in starts]
    middles = [sum(part) / len(part) for part in (steps[start : start + size] for start in starts)]
    return middles, [sum(g) / len(g) for g in groups], [min(g) for g in groups], [max(g) for g in groups]


def _describe(curve: Curve, unit: str) -> str:
    """First and last value in words."""
    first, last = (f"{value:.4g}" for value in (curve.values[0], curve.values[-1]))
    span = f"at step {curve.steps[0]}" if len(curve.steps) == 1 else f"from step {curve.steps[0]} to {curve.steps[-1]}"
    return f"{curve.label}: {unit} {first if len(curve.steps) == 1 else f'{first} to {last}'} {span}"


def svg_of(draw: Callable[[Axes], None], name: str, *, x: str = "step") -> str:
    """What `draw` draws, as one <svg> element without names, sizes or styles that could touch the page around it."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    drawing = Figure(figsize=(WIDTH, HEIGHT), layout="constrained", facecolor="none")
    axes = drawing.add_subplot(facecolor="none")
    draw(axes)
    axes.set_xlabel(x)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=x == "step"))
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=INK, labelsize=10, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(INK)
    for label in (axes.xaxis.label, axes.yaxis.label, axes.yaxis.get_offset_text()):
        label.set(color=INK, fontsize=10)
    written = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    FigureCanvasSVG(drawing).print_svg(written, metadata=metadata)
    return _inline(written.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """`svg` without prolog, comments, style sheet and size; ids and colours made the page's own.

    Ids are numbered in order of appearance behind `name`: two charts of a page never share one, and the same records
    always give the same bytes (matplotlib's own ids are random).
    """
    svg = re.sub(r"<!--.*?-->|<style.*?</style>|<metadata.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    numbered = {found: f"{name}-{n}" for n, found in enumerate(dict.fromkeys(re.findall(r'\bid="([^"]+)"', svg)))}
    svg = re.sub(r'\bid="([^"]+)"', lambda m: f'id="{numbered[m[1]]}"', svg)
    svg = re.sub(r'(?<=["(])#([^")]+)(?=[")])', lambda m: f"#{numbered.get(m[1], m[1])}", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable}, {color})")
    view = re.search(r'viewBox="[^"]+"', svg)
    assert view is not None, "matplotlib always writes a viewBox"
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    head = f'<svg {spaces} {view[0]} aria-hidden="true">'
    return head + re.sub(r"^<svg[^>]*>", "", svg).strip()
