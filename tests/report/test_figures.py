from __future__ import annotations

import math
import re
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from lowmem.report.figures import PALETTE, POINTS, VARIABLES, Chart, charts
from tests.report.runs import finished_run, judged, records, step


def by_title(drawn: list[Chart]) -> dict[str, Chart]:
    return {chart.title: chart for chart in drawn}


@pytest.fixture(scope="module")
def finished() -> dict[str, Chart]:
    return by_title(charts(records(finished_run())))


def test_a_first_order_run_shows_loss_rate_memory_and_gradient_norm(finished: dict[str, Chart]) -> None:
    assert list(finished) == ["Loss", "Learning rate", "Memory", "Gradient norm"]


def test_a_zeroth_order_run_shows_step_length_radius_and_slope() -> None:
    events = [step(n, gamma=1e-3 / n, radius=2e-3, projected_grad=(-1.0) ** n, forwards=3.0) for n in range(1, 5)]
    drawn = by_title(charts(records(events)))
    assert list(drawn)[3:] == ["Step length and probing radius", "Projected gradient"]
    assert [s.label for s in drawn["Step length and probing radius"].legend] == [
        "step length (gamma)",
        "probing radius",
    ]
    assert "Logarithmic axis." in drawn["Step length and probing radius"].notes


def test_the_description_tells_the_values_that_are_drawn(finished: dict[str, Chart]) -> None:
    assert "training, before the update: loss 2 to 1 from step 1 to 4" in finished["Loss"].description
    assert "evaluation: held-out: loss 2 to 1.5 from step 0 to 4" in finished["Loss"].description
    assert "peak so far: MiB 801 to 804" in finished["Memory"].description


def test_a_loss_that_is_not_finite_is_left_out_and_counted(finished: dict[str, Chart]) -> None:
    assert finished["Loss"].notes == ("training, before the update: 1 value(s) are not finite and not drawn.",)
    assert finished["Learning rate"].notes == ()


def test_without_a_finite_value_there_is_no_chart() -> None:
    assert "Loss" not in by_title(charts(records([step(1, loss=math.nan), step(2, loss=math.inf)])))
    assert charts([]) == []


def test_a_loss_that_spans_magnitudes_gets_a_logarithmic_axis() -> None:
    drawn = by_title(charts(records([step(1, loss=500.0), step(2, loss=0.5)])))
    assert drawn["Loss"].notes == ("Logarithmic axis.",)


def test_many_steps_become_means_with_a_band_and_say_so() -> None:
    short = by_title(charts(records([step(n, loss=math.sin(n)) for n in range(1, POINTS + 1)])))
    long = by_title(charts(records([step(n, loss=math.sin(n)) for n in range(1, 20 * POINTS)])))
    assert short["Loss"].notes == ()
    assert long["Loss"].notes == ("Each point is the mean of 20 records, the band their range.",)
    assert len(long["Loss"].svg) < 3 * len(short["Loss"].svg)


def test_one_step_is_enough() -> None:
    assert "loss 1 at step 1" in by_title(charts(records([step(1)])))["Loss"].description


def test_every_drawing_is_well_formed_and_takes_its_colours_from_the_page(finished: dict[str, Chart]) -> None:
    for chart in finished.values():
        ElementTree.fromstring(chart.svg)
        colours = re.findall(r"#[0-9a-f]{6}\b", chart.svg)
        assert colours
        assert len(colours) == len(re.findall(r"var\(--[\w-]+, #[0-9a-f]{6}\)", chart.svg))
        assert set(colours) <= set(VARIABLES)
        assert not re.search(r"<style|<metadata|<!--|<\?xml|<script", chart.svg)


def test_no_two_drawings_share_an_id_and_every_reference_is_met(finished: dict[str, Chart]) -> None:
    ids = [found for chart in finished.values() for found in re.findall(r'\bid="([^"]+)"', chart.svg)]
    assert len(ids) == len(set(ids))
    for chart in finished.values():
        wanted = set(re.findall(r'href="#([^"]+)"', chart.svg)) | set(re.findall(r"url\(#([^)]+)\)", chart.svg))
        assert wanted <= set(re.findall(r'\bid="([^"]+)"', chart.svg))


def test_the_same_records_give_the_same_bytes(finished: dict[str, Chart]) -> None:
    assert by_title(charts(records(finished_run()))) == finished


def test_names_of_the_run_reach_the_legend_but_not_the_drawing() -> None:
    plain, hostile = (
        by_title(charts(records([step(1), judged(1, f"after:{name}", loss=2.0)])))["Loss"]
        for name in ("x", "</svg><script>$\\frac$ 数据")
    )
    assert hostile.svg == plain.svg
    assert hostile.legend[1].label == "evaluation: </svg><script>$\\frac$ 数据"


def test_series_differ_by_sign_as_well_as_by_colour() -> None:
    events = [step(1), *(judged(1, f"after:{name}", loss=2.0) for name in "abcde")]
    legend = by_title(charts(records(events)))["Loss"].legend
    assert len({series.sign for series in legend}) == len({series.variable for series in legend}) == 6


def contrast(colour: str, paper: str) -> float:
    """WCAG 2 contrast ratio."""

    def luminance(text: str) -> float:
        parts = [int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(colour), luminance(paper)))
    return (light + 0.05) / (dark + 0.05)


def test_colours_can_be_told_from_paper() -> None:
    assert min(contrast(colour, "#ffffff") for colour in PALETTE) >= 4.5


def test_pyplot_and_its_global_figures_are_never_touched(finished: dict[str, Chart]) -> None:
    assert finished
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
