"""One self-contained `report.html` from a run folder: no script, no font, no picture, nothing fetched.

Every text of the run (names, config, samples) goes through `_text`, which escapes it; the page's own policy also
forbids scripts and any request.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from lowmem.report.figures import Chart, charts
from lowmem.report.run_folder import PhaseMemory, Record, RunFolder, Sample, read_run_folder
from lowmem.report.summary import (
    MEMORY_TOLERANCE,
    Change,
    Verdict,
    changes,
    ending,
    facts,
    figure,
    miss,
    of_kind,
    peak_bytes,
    sentence,
    signed,
    status,
)
from lowmem.units import format_bytes

_UNSHOWABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_VERDICTS: dict[Verdict, tuple[str, str]] = {
    "better": ("✓ better", "good"),
    "worse": ("✗ worse", "bad"),
    "unchanged": ("= unchanged", ""),
    "unknown": ("–", ""),
}


def write_report(run_folder: Path) -> Path:
    """`report.html` of the run is in its folder, whole or as it was before. Returns its path.

    Missing and damaged pieces are named in the report. Raises `ConfigError` when the folder holds no run.
    """
    page = render(read_run_folder(run_folder))
    target = run_folder / "report.html"
    partial = run_folder / ".partial-report.html"
    with partial.open("w", encoding="utf-8") as file:
        file.write(page)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)
    return target


def render(run: RunFolder) -> str:
    """The page as text."""
    sections = [
        _headline(run),
        _results(changes(run.records)),
        _curves(charts(run.records)),
        _memory(run.memory, peak_bytes(run.records)),
        _samples(run.samples),
        _section("Config", f"<pre>{_text(run.config_text)}</pre>" if run.config_text else _soft("Not recorded.")),
        _section("Plan", _nested(run.plan) if run.plan else _soft("This run was not planned (no plan.json).")),
        _section("Environment", _nested(run.environment) if run.environment else _soft("Not recorded.")),
        _notices(run),
    ]
    page = Template(resources.files("lowmem.report").joinpath("page.html").read_text(encoding="utf-8"))
    return page.substitute(title=_text(f"{_name(run)} · lowmem"), body="\n".join(sections))


def _headline(run: RunFolder) -> str:
    tiles = "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in facts(run))
    mood = "status" if ending(run.records) in ("completed", "early_stopping") else "status unfinished"
    return (
        f'<header><h1>{_text(_name(run))}</h1><p class="lead">{_text(sentence(run))}</p>'
        f'<p class="{mood}">{_text(status(run))}</p>'
        + (f'<dl class="facts">{tiles}</dl>' if tiles else "")
        + "</header>"
    )


def _results(found: list[Change]) -> str:
    if not found:
        return _section("Results", _soft("No evaluation was recorded."))
    rows = []
    for change in found:
        word, mood = _VERDICTS[change.verdict]
        rows.append(
            (
                _th(change.dataset),
                _td(change.metric),
                _td(f"{figure(change.before)} → {figure(change.after)}", "number"),
                _td(signed(change), "number"),
                _td(word, mood),
            )
        )
    return _section("Results", _table(("dataset", "metric", "#before → after", "#difference", ""), rows))


def _curves(drawn: Sequence[Chart]) -> str:
    figures = []
    for chart in drawn:
        legend = "".join(
            f'<li><span style="color:var({entry.variable})">{entry.sign}</span> {_text(entry.label)}</li>'
            for entry in chart.legend
        )
        notes = "".join(f"<div>{_text(note)}</div>" for note in chart.notes)
        figures.append(
            f'<figure><h3>{_text(chart.title)}</h3><div role="img" aria-label="{_text(chart.description)}">{chart.svg}'
            f'</div><figcaption><ul class="legend">{legend}</ul>{notes}</figcaption></figure>'
        )
    grid = f'<div class="charts">{"".join(figures)}</div>' if figures else _soft("No step was recorded.")
    return _section("Curves", grid)


def _memory(phases: Sequence[PhaseMemory], peak: int) -> str:
    if not phases:
        known = f"The measured peak is {format_bytes(peak)}. " if peak else ""
        return _section("Memory", _soft(f"{known}No prediction was recorded to compare with (no memory.json)."))
    rows = []
    for phase in phases:
        off = miss(phase)
        missed = off is not None and abs(off) > MEMORY_TOLERANCE
        met = "not predicted" if off is None else "as predicted"
        word = f"⚠ off by more than {MEMORY_TOLERANCE:.0%}" if missed else met
        rows.append(
            (
                _th(phase.phase),
                _td("–" if phase.predicted is None else format_bytes(phase.predicted), "number"),
                _td(format_bytes(phase.measured), "number"),
                _td("–" if off is None else f"{off:+.1%}", "number"),
                _td(word, "bad" if missed else ""),
            )
        )
    return _section("Memory", _table(("phase", "#predicted", "#measured", "#difference", ""), rows))


def _samples(samples: Sequence[Sample]) -> str:
    if not samples:
        return _section("Samples", _soft("No sample answers were recorded (no samples.jsonl)."))
    return _section("Samples", "".join(_sample(sample) for sample in samples))


def _sample(sample: Sample) -> str:
    def block(label: str, text: str | None) -> str:
        shown = _soft("not recorded") if text is None else f'<div class="text" dir="auto">{_text(text)}</div>'
        return f'<div><div class="label">{label}</div>{shown}</div>'

    answers = block("Before training", sample.before) + block("After training", sample.after)
    reference = block("Reference", sample.reference) if sample.reference is not None else ""
    prompt = block("Prompt", sample.prompt)
    return f'<article class="sample">{prompt}<div class="answers">{answers}{reference}</div></article>'


def _notices(run: RunFolder) -> str:
    """What the run said, when it was resumed, and what this report lacks."""
    messages = [str(record.get("message")) for record in of_kind(run.records, "Notice")]
    resumed = [
        f"Resumed at step {record.get('start_step')} from {record['resumed_from']}."
        for record in of_kind(run.records, "RunStarted")
        if record.get("resumed_from")
    ]
    items = "".join(f"<li>{_text(text)}</li>" for text in [*messages, *resumed, *run.problems])
    return _section("Notices", f"<ul>{items}</ul>" if items else _soft("None."))


def _name(run: RunFolder) -> str:
    return str(run.config.get("run_name") or run.name)


def _nested(content: Record) -> str:
    """A table of every leaf with its path; keys that end in bytes are shown as sizes."""
    rows = [(_th(key), _td(value)) for key, value in _leaves(content, "")]
    return _table(("", ""), rows)


def _leaves(value: Any, path: str) -> Iterable[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path} · {key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for number, item in enumerate(value, start=1):
            yield from _leaves(item, f"{path} · {number}")
    elif isinstance(value, list):
        yield path, ", ".join(str(item) for item in value) or "none"
    elif isinstance(value, int) and not isinstance(value, bool) and path.endswith("bytes"):
        yield path.removesuffix("_bytes"), format_bytes(value)
    else:
        yield (
            path,
            "–" if value is None else {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value),
        )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls on its own. A head that starts with # stands over numbers; all heads empty: no head."""
    cells = "".join(f'<th class="number">{h[1:]}</th>' if h.startswith("#") else f"<th>{h}</th>" for h in heads)
    head = f"<thead><tr>{cells}</tr></thead>" if any(heads) else ""
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="scroll" tabindex="0"><table>{head}<tbody>{body}</tbody></table></div>'


def _th(text: str) -> str:
    return f'<th scope="row">{_text(text)}</th>'


def _td(text: str, mood: str = "") -> str:
    return f'<td class="{mood}">{_text(text)}</td>' if mood else f"<td>{_text(text)}</td>"


def _soft(text: str) -> str:
    return f'<p class="soft">{_text(text)}</p>'


def _text(text: str) -> str:
    """`text` for any place of the page: markup escaped, and what UTF-8 or HTML cannot hold (halves of a surrogate
    pair, control characters) replaced by a visible sign."""
    return html.escape(_UNSHOWABLE.sub("\ufffd", text), quote=True)
