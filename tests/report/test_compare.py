from __future__ import annotations

import csv
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

from lowmem.report.compare import Subject, best, csv_of, differences, frontier, metric_names, records_of, subject_of
from lowmem.report.compare_page import comparison_page
from lowmem.report.overlay import CURVES, overlaid, pareto
from tests.report.runs import finished_run, write_run

STEPS = [{"event": "StepDone", "step": step, "loss": 3.0 / step} for step in range(1, 5)]
MIB = 2**20


def run(name: str, loss: float = 1.0, peak: int = 100, **keys: object) -> Subject:
    return Subject(name, "done", {"seed": 1, **keys}, {"loss": loss}, 90 * MIB, peak * MIB, 50.0, 61.0, records=STEPS)


def test_a_run_folder_is_read_as_what_people_compare(tmp_path: Path) -> None:
    found = subject_of(write_run(tmp_path, finished_run()))
    assert found.state == "done"
    assert found.settings["method.kind"] == "lora"
    assert "output_dir" not in found.settings
    assert found.metrics
    assert found.peak_bytes
    assert found.tokens_per_second


def test_only_settings_that_differ_are_shown() -> None:
    pair = [run("a", rate=1e-4, r=8), run("b", rate=3e-4, r=8), Subject("command", "done")]
    assert differences(pair) == ["rate"]
    assert [row["settings"] for row in records_of(pair)] == [{"rate": 1e-4}, {"rate": 3e-4}, {"rate": None}]


def test_the_frontier_is_what_nothing_beats_with_less_memory() -> None:
    runs = [run("large", 0.5, 300), run("small", 2.0, 50), run("worse", 2.5, 60), run("mid", 1.0, 100)]
    runs += [Subject("lost", "failed", metrics={"loss": float("nan")}, peak_bytes=1), Subject("none", "done")]
    assert [s.name for s in frontier(runs, "loss")] == ["small", "mid", "large"]
    right = [
        Subject("x", "done", metrics={"acc": 0.5}, peak_bytes=1),
        Subject("y", "done", metrics={"acc": 0.4}, peak_bytes=2),
    ]
    assert [s.name for s in frontier(right, "acc")] == ["x"]
    assert (best(runs, "loss"), best(right, "acc"), best([run("a"), run("b")], "loss")) == (0.5, 0.5, None)


def test_losses_come_first_and_the_table_reads_back() -> None:
    runs = [Subject("a, b", "done", metrics={"accuracy": 0.5, "loss": 1.0}), run("c")]
    assert metric_names(runs) == ["loss", "accuracy"]
    rows = list(csv.DictReader(csv_of(runs).splitlines()))
    assert (rows[0]["name"], rows[0]["accuracy"], rows[1]["accuracy"]) == ("a, b", "0.5", "")


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_holds_everything_and_asks_for_nothing() -> None:
    hostile = '<script>alert("x")</script>'
    failed = Subject(hostile, "failed", {"rate": hostile}, error=f"exit code 1: {hostile}", last_lines=("one", hostile))
    text = comparison_page([run("a", 0.5, 100, rate=1), run("b", 1.0, 50, rate=2), failed], title="three")
    page = _Page(text)
    assert not {"script", "img", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert not re.search(r"""(?:src|href)=["'](?!#)""", text)
    said = " ".join(" ".join(page.words).split())
    assert "2 of 3 done. Best loss: 0.5 by a." in said
    assert "100.00 MiB (111%)" in said
    assert f"exit code 1: {hostile}" in said
    assert f"one {hostile}" in said
    assert text.count("<svg") == 2, "training loss, and quality against memory"


def test_a_page_of_jobs_without_settings_or_curves_says_so() -> None:
    text = comparison_page([Subject("a", "done"), Subject("b", "waiting")], title="two")
    assert "There are none that are recorded." in text
    assert "<svg" not in text


def test_drawings_hold_numbers_only_and_name_runs_in_the_legend() -> None:
    (chart,) = overlaid([run("<&name>")])
    assert [entry.label for entry in chart.legend] == ["<&name>"]
    assert "name" not in re.sub(r'id="[^"]*"|url\([^)]*\)|href="[^"]*"', "", chart.svg)
    ElementTree.fromstring(chart.svg)
    front = pareto([run("a", 0.5, 100), run("b", 1.0, 50)], "loss")
    assert front is not None
    assert [entry.label for entry in front.legend] == ["1 a", "2 b"]
    assert front.description == "Not beaten by any: b: 1 in 50 MiB; a: 0.5 in 100 MiB."
    assert pareto([run("a")], "loss") is None


def test_more_runs_than_can_be_told_apart_are_named_in_a_note() -> None:
    (chart,) = overlaid([run(f"r{i}") for i in range(CURVES + 3)])
    assert len(chart.legend) == CURVES
    assert chart.notes == ("3 more runs are in the table only.",)
    assert len({(entry.sign, entry.variable) for entry in chart.legend}) == CURVES
