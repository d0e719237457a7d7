"""The page of `lowmem diagnose forgetting`: the fronts, forgetting at equal learning, and what moved inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lowmem.diagnose.activations import Sparsity
from lowmem.diagnose.forgetting import Cell, Spread, Summary
from lowmem.diagnose.pareto import START, front
from lowmem.report.elements import curves, escaped, section, soft, table, td, th, whole_page
from lowmem.report.figures import MARKS, PALETTE, VARIABLES, Chart, Series, svg_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NORMS = {
    "max_entry": "largest entry",
    "spectral": "spectral",
    "frobenius": "Frobenius",
    "max_row": "largest row sum",
    "max_column": "largest column sum",
    "stable_rank": "stable rank",
}


def forgetting_page(
    summary: Summary,
    cells: Sequence[Cell],
    activations: Mapping[str, Mapping[str, Sparsity]],
    failed: Mapping[str, str],
    *,
    title: str,
) -> str:
    """The page as text."""
    parts = [
        f'<header><h1>{escaped(title)}</h1><p class="lead">{escaped(_sentence(summary, cells, failed))}</p></header>',
        curves([pareto_chart(cells)], "Learning and forgetting"),
        section("Forgetting at equal learning", _matched(summary)),
        section("Runs", _runs(cells)),
        section("What the updates look like", _updates(summary, cells)),
        section("Activations of the model as it was", _activations(activations)),
    ]
    if failed:
        items = "".join(f"<li>{escaped(name)}: {escaped(reason)}</li>" for name, reason in failed.items())
        parts.append(section("Not finished", f"<ul>{items}</ul>"))
    return whole_page(f"{title} · lowmem", parts)


def pareto_chart(cells: Sequence[Cell]) -> Chart:
    """Every evaluation of every run as a point, the front of each arm (over all its seeds) as a line."""
    arms = list(dict.fromkeys(cell.arm for cell in cells))
    legend, said = [], []

    def draw(axes: Axes) -> None:
        for index, arm in enumerate(arms):
            color, (marker, sign) = PALETTE[index % len(PALETTE)], MARKS[index % len(MARKS)]
            dashed = index >= len(PALETTE)
            points = [point for cell in cells if cell.arm == arm for point in cell.points]
            joined = front([START, *points])
            xs, ys = [p.learning for p in joined], [p.forgetting for p in joined]
            axes.plot(xs, ys, linestyle="--" if dashed else "-", color=color, linewidth=1.4)
            axes.plot(
                [p.learning for p in points],
                [p.forgetting for p in points],
                marker,
                color=color,
                markersize=4,
                fillstyle="none" if dashed else "full",
                alpha=0.7,
            )
            legend.append(Series(arm, sign, VARIABLES[color]))
            said.append(f"{arm}: " + ", ".join(f"({x:.3g}, {y:.3g})" for x, y in zip(xs, ys, strict=True)))
        axes.set_ylabel("forgetting")

    svg = svg_of(draw, "pareto", x="learning")
    notes = ("Right is better, low is better. Lines join the points that no other of their arm beats.",)
    described = f"Fronts as (learning, forgetting). {'; '.join(said)}."
    return Chart("Which points nothing beats", svg, described, tuple(legend), notes)


def _sentence(summary: Summary, cells: Sequence[Cell], failed: Mapping[str, str]) -> str:
    said = f"{len(cells)} runs of {len(summary.arms)} arms" + (
        f", {len(failed)} more did not finish." if failed else "."
    )
    last = [(arm.matched[-1], arm.arm) for arm in summary.arms if arm.matched and arm.matched[-1] is not None]
    if len(last) < 2:
        return f"{said} There is no learning that two arms share, so they are not compared."
    ranked = sorted(((s, name) for s, name in last if s is not None), key=lambda pair: pair[0].mean)
    (best, name), (second, other) = ranked[0], ranked[1]
    gap, noise = second.mean - best.mean, max(best.std, second.std)
    if best.seeds < 2:
        said += f" Least forgotten at the largest common learning: {name}; one seed, so nothing is decided."
    elif gap <= noise:
        said += f" {name} forgets least at the largest common learning, within the spread of {other}: undecided."
    else:
        said += f" {name} forgets least at the largest common learning, by more than the spread over seeds."
    return said


def _matched(summary: Summary) -> str:
    if not summary.levels:
        return soft("At least one arm learned nothing at any rate; widen its learning rates.")
    heads = ["arm", "#runs", *(f"#at {level:.3g}" for level in summary.levels), "#most learned", "#hypervolume"]
    rows = [
        [
            th(arm.arm),
            td(str(arm.cells), "number"),
            *(td(_spread(found), "number") for found in arm.matched),
            td(f"{arm.most_learned:.4g}", "number"),
            td(_spread(arm.hypervolume), "number"),
        ]
        for arm in summary.arms
    ]
    return table(heads, rows) + soft(
        "Forgetting, interpolated on each arm's front at levels of learning that all arms reach; mean and standard "
        "deviation over seeds. Hypervolume: the area between a front and the most that anything forgot; more is better."
    )


def _runs(cells: Sequence[Cell]) -> str:
    heads = ["arm", "#learning rate", "#seed", "#learning", "#forgetting", "#KL on old text"]
    rows = [
        [
            th(cell.arm),
            td(f"{cell.learning_rate:g}", "number"),
            td(str(cell.seed), "number"),
            td(f"{cell.final.learning:.4g}", "number"),
            td(f"{cell.final.forgetting:.4g}", "number"),
            td(f"{cell.divergence:.3g}", "number"),
        ]
        for cell in cells
        if cell.points
    ]
    return table(heads, rows)


def _updates(summary: Summary, cells: Sequence[Cell]) -> str:
    heads = ["arm", "#learning rate", "#seed", *(f"#{name}" for name in NORMS.values())]
    rows = [
        [
            th(cell.arm),
            td(f"{cell.learning_rate:g}", "number"),
            td(str(cell.seed), "number"),
            *(td(f"{cell.updates[name]:.3g}", "number") for name in NORMS),
        ]
        for cell in cells
    ]
    found = summary.correlations.items()
    ranks = "; ".join(f"{NORMS[norm]} {'–' if rho is None else f'{rho:+.2f}'}" for norm, rho in found)
    return table(heads, rows) + soft(
        "Means over matrices of W - W0. Rank correlation over runs of the squared norm times the inputs' squared size, "
        f"summed over layers, with measured forgetting: {ranks}."
    )


def _activations(found: Mapping[str, Mapping[str, Sparsity]]) -> str:
    heads = ["text", "layers", "#flatness", "#Hoyer", "#tiny", "#|x|₁²", "#|x|₂²", "#max|x|²"]
    rows = [
        [th(text), td(kind), *(td(f"{value:.3g}", "number") for value in vars(one).values())]
        for text, kinds in found.items()
        for kind, one in kinds.items()
    ]
    return table(heads, rows) + soft(
        "Inputs x of d numbers, means over tokens. Flatness: |x|₁ / (√d |x|₂), 0.798 for Gaussian inputs, 1 where all "
        "entries are equally large. Hoyer: 0 there, 1 for a single entry. Tiny: share of entries below 1 % of the root "
        "mean square."
    )


def _spread(found: Spread | None) -> str:
    if found is None:
        return "–"
    return f"{found.mean:.4g}" + (f" ± {found.std:.2g}" if found.seeds > 1 else "")
