from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lowmem.errors import ConfigError
from lowmem.events import Notice, RunStarted
from lowmem.report.html import write_report
from tests.report.runs import STARTED, config, finished_run, judged, step, write_run

HOSTILE = "</pre></title><script>alert(1)</script><img src=//evil onerror=alert(1)> & \"'"
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """What a browser makes of the page: its elements, their attributes, the text by section."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.sections: dict[str, str] = {}
        self.heading: str | None = None
        self.feed(text)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "h2":
            self.heading = ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.heading = data
        if self.open and self.open[-1] not in ("style", "title"):
            key = self.heading or "headline"
            self.sections[key] = f"{self.sections.get(key, '')} {data}"

    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}


def report(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def full_run(folder: Path) -> Path:
    write_run(folder, finished_run())
    memory = {
        "load": {"predicted": 1000 * 2**20, "measured": 1019 * 2**20},
        "step": {"predicted": 1000 * 2**20, "measured": 1021 * 2**20},
        "evaluation": {"predicted": None, "measured": 5 * 2**20},
    }
    (folder / "memory.json").write_text(json.dumps(memory))
    (folder / "plan.json").write_text(json.dumps({"fits": True, "phases": [{"name": "step", "peak_bytes": 2**30}]}))
    sample = {"prompt": "1 + 1?", "before": "maybe 3", "after": "#### 2", "reference": "2"}
    (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    return folder


def test_a_whole_run_becomes_a_whole_page(tmp_path: Path) -> None:
    folder = full_run(tmp_path / "run")
    assert write_report(folder) == folder / "report.html"
    page = report(folder)
    assert list(page.sections) == [
        "headline",
        "Results",
        "Curves",
        "Memory",
        "Samples",
        "Config",
        "Plan",
        "Environment",
        "Notices",
    ]
    told = page.sections
    assert "loss on held-out 2 → 1.5 (better)" in told["headline"]
    assert re.search(r"held-out\s+loss\s+2 → 1.5\s+-0.5 \(-25.0%\)\s+✓ better", told["Results"])
    assert re.search(r"exact_match\s+0.25 → 0.75\s+\+0.5\s+✓ better", told["Results"])
    assert [tag for tag, _ in page.elements].count("svg") == 4
    assert re.search(r"1 \+ 1\?.*maybe 3.*#### 2.*Reference\s+2", told["Samples"], re.DOTALL)
    assert "model: tiny-reasoner" in told["Config"]
    assert re.search(r"fits\s+yes", told["Plan"])
    assert re.search(r"phases · 1 · peak\s+1.00 GiB", told["Plan"])
    assert re.search(r"packages · torch\s+2.13.0", told["Environment"])
    assert re.search(r"ram\s+16.00 GiB\s+cuda\s+–", told["Environment"])
    assert "lr is read as learning_rate" in told["Notices"]


def test_a_miss_above_two_percent_is_flagged_and_nothing_else(tmp_path: Path) -> None:
    memory = report(full_run(tmp_path / "run")).sections["Memory"]
    assert re.search(r"load\s+1000.00 MiB\s+1019.00 MiB\s+\+1.9%\s+as predicted", memory)
    assert re.search(r"step\s+1000.00 MiB\s+1021.00 MiB\s+\+2.1%\s+⚠ off by more than 2%", memory)
    assert re.search(r"evaluation\s+–\s+5.00 MiB\s+–\s+not predicted", memory)
    assert memory.count("⚠") == 1


def test_nothing_is_fetched_and_nothing_runs(tmp_path: Path) -> None:
    folder = full_run(tmp_path / "run")
    text = write_report(folder).read_text(encoding="utf-8")
    page = Page(text)
    assert not page.tags() & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert name not in ("src", "srcset", "action", "href"), tag
            assert not name.startswith("on"), tag
            assert name != "xlink:href" or str(value).startswith("#")
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []
    policy = [a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_hostile_text_stays_text_wherever_it_comes_from(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    hostile = config(model=HOSTILE, run_name=HOSTILE, dataset=[{"format": "auto", "path": HOSTILE}])
    started = RunStarted(HOSTILE, 4, 0, 1, 2, resumed_from=HOSTILE)
    events = [Notice(HOSTILE), started, step(1), judged(1, f"after:{HOSTILE}", loss=1.0, **{HOSTILE: 2.0})]
    write_run(folder, events, run_config=hostile)
    names = ("prompt", "before", "after", "reference")
    (folder / "samples.jsonl").write_text(json.dumps(dict.fromkeys(names, HOSTILE)))
    for name in ("env.json", "plan.json"):
        (folder / name).write_text(json.dumps({HOSTILE: [HOSTILE, {HOSTILE: HOSTILE}]}))
    (folder / "memory.json").write_text(json.dumps({HOSTILE: {"predicted": 1, "measured": 2}}))
    page = report(folder)
    assert not page.tags() & {"script", "img"}
    shown = page.sections
    assert HOSTILE in shown["headline"]
    for section, times in {"Results": 3, "Memory": 1, "Samples": 4, "Plan": 5, "Environment": 5}.items():
        assert shown[section].count(HOSTILE) == times, section
    assert HOSTILE in shown["Notices"]
    labels = [str(attributes.get("aria-label")) for _, attributes in page.elements]
    assert any(HOSTILE in label for label in labels), "quotes must not end an attribute"


def test_text_that_a_file_cannot_hold_is_shown_as_a_sign(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", finished_run())
    (folder / "samples.jsonl").write_text(json.dumps({"prompt": "a\ud800b\x00c\x1b[31m", "after": "数据\n👩‍💻"}))
    samples = report(folder).sections["Samples"]
    assert "a\ufffdb\ufffdc\ufffd[31m" in samples
    assert "数据\n👩‍💻" in samples


def test_a_sample_says_which_answer_is_missing(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", finished_run())
    (folder / "samples.jsonl").write_text('{"prompt": "p", "after": "a"}\n\n')
    samples = report(folder).sections["Samples"]
    assert re.search(r"Before training\s+not recorded\s+After training\s+a", samples)
    assert "Reference" not in samples


def test_an_interrupted_run_has_a_report_that_says_so(tmp_path: Path) -> None:
    page = report(write_run(tmp_path / "run", finished_run()[:8]))
    assert "Not finished: the last record is of step 3 of 4" in page.sections["headline"]
    assert "2 → 1.75" in page.sections["Results"]
    moods = [a.get("class") for tag, a in page.elements if tag == "p"]
    assert "status unfinished" in moods


def test_missing_pieces_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", finished_run())
    (folder / "env.json").unlink()
    (folder / "config.yaml").unlink()
    told = report(folder).sections
    assert "config.yaml is missing: what was asked for is not known." in told["Notices"]
    assert "env.json is missing: versions and hardware are not known." in told["Notices"]
    assert "no memory.json" in told["Memory"]
    assert "The measured peak is 900.00 MiB" in told["Memory"]
    assert "no samples.jsonl" in told["Samples"]
    assert "no plan.json" in told["Plan"]


def test_a_run_that_failed_before_its_first_step_has_a_report(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [STARTED])
    told = report(folder).sections
    assert "No step was recorded." in told["Curves"]
    assert "No evaluation was recorded." in told["Results"]
    (folder / "metrics.jsonl").unlink()
    assert "metrics.jsonl is missing: there are no curves and no results." in report(folder).sections["Notices"]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("metrics.jsonl", '{"event": "Notice", "message": "m"}\n{\n{}\n', "metrics.jsonl:2: not a JSON record"),
        ("env.json", "{", "env.json cannot be read: Expecting property name"),
        ("env.json", "[1]", "env.json cannot be read: it holds no object"),
        ("plan.json", "[" * 100_000, "plan.json cannot be read"),
        ("config.yaml", "a: [", "config.yaml cannot be read"),
        ("config.yaml", "just words", "config.yaml cannot be read: it holds no keys"),
        ("memory.json", '{"step": {"predicted": 3}}', "memory.json cannot be read: 'step' has no bytes"),
        ("memory.json", '{"step": 3}', "memory.json cannot be read: 'step' has no bytes"),
        ("samples.jsonl", '{"prompt": "p"}\n[]\n', "samples.jsonl cannot be read: line 2 holds no object"),
        ("samples.jsonl", "{", "samples.jsonl cannot be read"),
    ],
)
def test_a_damaged_piece_is_named_and_the_rest_is_reported(
    tmp_path: Path, name: str, content: str, complaint: str
) -> None:
    folder = full_run(tmp_path / "run")
    (folder / name).write_text(content)
    told = report(folder).sections
    assert complaint in told["Notices"]
    assert "1.2 M" in told["headline"] or name == "metrics.jsonl"


def test_resumes_are_told(tmp_path: Path) -> None:
    again = RunStarted("LoRA", 4, 2, 1, 2, resumed_from="step-00000002")
    told = report(write_run(tmp_path / "run", [*finished_run(), again]))
    assert "Resumed at step 2 from step-00000002." in told.sections["Notices"]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not a run folder: it has neither config\.yaml nor metrics\.jsonl"):
        write_report(tmp_path)
    with pytest.raises(ConfigError, match="is not a run folder"):
        write_report(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_an_older_report_is_whole_until_the_new_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "run", finished_run()[:4])
    before = write_report(folder).read_bytes()

    class Killed(BaseException):
        """Stands for SIGKILL."""

    def kill(self: Path, target: Path) -> Path:
        raise Killed

    write_run(folder, finished_run())
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", kill)
        with pytest.raises(Killed):
            write_report(folder)
    assert (folder / "report.html").read_bytes() == before
    assert write_report(folder).read_bytes() != before
    assert [path.name for path in folder.iterdir() if path.name.startswith(".partial")] == []


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    folder = full_run(tmp_path / "run")
    assert write_report(folder).read_bytes() == write_report(folder).read_bytes()
