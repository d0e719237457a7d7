"""One self-contained `report.html` from a run folder: no script, no font, no picture, nothing fetched.

Every text of the run (names, config, samples) goes through `escaped`, which escapes it; the page's own policy also
forbids scripts and any request.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lowmem.report.elements import curves, escaped, section, soft, table, td, th, whole_page, write_whole
from lowmem.report.figures import charts
from lowmem.report.reasoning import reasoning_section
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
    target = run_folder / "report.html"
    write_whole(target, render(read_run_folder(run_folder)))
    return target


def render(run: RunFolder) -> str:
    """The page as text."""
    sections = [
        _headline(run),
        _results(changes(run.records)),
        curves(charts(run.records)),
        _memory(run.memory, peak_bytes(run.records)),
        _samples(run.samples),
        reasoning_section(run.reasoning),
        section("Config", f"<pre>{escaped(run.config_text)}</pre>" if run.config_text else soft("Not recorded.")),
        section("Plan", _nested(run.plan) if run.plan else soft("This run was not planned (no plan.json).")),
        section("Environment", _nested(run.environment) if run.environment else soft("Not recorded.")),
        _notices(run),
    ]
    return whole_page(f"{_name(run)} · lowmem", sections)


def _headline(run: RunFolder) -> str:
    tiles = "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>" for name, value in facts(run))
    mood = "status" if ending(run.records) in ("completed", "early_stopping") else "status unfinished"
    return (
        f'<header><h1>{escaped(_name(run))}</h1><p class="lead">{escaped(sentence(run))}</p>'
        f'<p class="{mood}">{escaped(status(run))}</p>'
        + (f'<dl class="facts">{tiles}</dl>' if tiles else "")
        + "</header>"
    )


def _results(found: list[Change]) -> str:
    if not found:
        return section("Results", soft("No evaluation was recorded."))
    rows = []
    for change in found:
        word, mood = _VERDICTS[change.verdict]
        rows.append(
            (
                th(change.dataset),
                td(change.metric),
                td(f"{figure(change.before)} → {figure(change.after)}", "number"),
                td(signed(change), "number"),
                td(word, mood),
            )
        )
    return section("Results", table(("dataset", "metric", "#before → after", "#difference", ""), rows))


def _memory(phases: Sequence[PhaseMemory], peak: int) -> str:
    if not phases:
        known = f"The measured peak is {format_bytes(peak)}. " if peak else ""
        return section("Memory", soft(f"{known}No prediction was recorded to compare with (no memory.json)."))
    rows = []
    for phase in phases:
        off = miss(phase)
        missed = off is not None and abs(off) > MEMORY_TOLERANCE
        met = "not predicted" if off is None else "as predicted"
        word = f"⚠ off by more than {MEMORY_TOLERANCE:.0%}" if missed else met
        rows.append(
            (
                th(phase.phase),
                td("–" if phase.predicted is None else format_bytes(phase.predicted), "number"),
                td(format_bytes(phase.measured), "number"),
                td("–" if off is None else f"{off:+.1%}", "number"),
                td(word, "bad" if missed else ""),
            )
        )
    return section("Memory", table(("phase", "#predicted", "#measured", "#difference", ""), rows))


def _samples(samples: Sequence[Sample]) -> str:
    if not samples:
        return section("Samples", soft("No sample answers were recorded (no samples.jsonl)."))
    return section("Samples", "".join(_sample(sample) for sample in samples))


def _sample(sample: Sample) -> str:
    def block(label: str, text: str | None) -> str:
        shown = soft("not recorded") if text is None else f'<div class="text" dir="auto">{escaped(text)}</div>'
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
    items = "".join(f"<li>{escaped(text)}</li>" for text in [*messages, *resumed, *run.problems])
    return section("Notices", f"<ul>{items}</ul>" if items else soft("None."))


def _name(run: RunFolder) -> str:
    return str(run.config.get("run_name") or run.name)


def _nested(content: Record) -> str:
    """A table of every leaf with its path; keys that end in bytes are shown as sizes."""
    rows = [(th(key), td(value)) for key, value in _leaves(content, "")]
    return table(("", ""), rows)


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
