"""The part of a run's page that says what became of its reasoning traces (`lowmem eval --reasoning`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lowmem.report.elements import escaped, section, soft, table, td, th

COLUMNS = (
    ("policy", "policy", ""),
    ("accuracy", "accuracy", ".3f"),
    ("accuracy_troubled", "troubled", ".3f"),
    ("accuracy_other", "others", ".3f"),
    ("tokens_per_problem", "tokens", ".0f"),
    ("tokens_per_correct", "tokens/right", ".0f"),
    ("seconds_per_problem", "seconds", ".3f"),
    ("seconds_p95", "p95", ".3f"),
    ("seconds_per_correct", "seconds/right", ".3f"),
    ("high_precision_share", "high", ".3f"),
)
RATES = (
    ("loop_rate", "loop"),
    ("hit_limit_rate", "cut off by the limit"),
    ("unclosed_rate", "thought never ends"),
    ("delayed_rate", "late to commit"),
)
OUTCOMES = {"ok": "right", "commitment_failure": "right answer lost", "path_finding_failure": "never right"}


def cells(row: Mapping[str, Any]) -> list[str]:
    """One policy as text, a cell per column of `COLUMNS`."""
    return [str(row[key]) if not form else _shown(row[key], form) for key, _, form in COLUMNS]


def rates(report: Mapping[str, Any]) -> str:
    """Outcomes, rates and rescues of one dataset in a sentence."""
    outcomes = ", ".join(f"{count} {OUTCOMES[name]}" for name, count in sorted(report["outcomes"].items()))
    said = f"{report['problems']} problems: {outcomes}. "
    said += "; ".join(f"{words} {report[key]:.1%}" for key, words in RATES) + "."
    said += f" Median trace {report['median_tokens']:.0f} tokens"
    if report["median_tokens_to_answer"] is not None:
        said += f", first answer after {report['median_tokens_to_answer']:.0f}"
    for key, words in (("loops_by_rule", "Loops by rule"), ("rescues_by_status", "Rescues")):
        if report[key]:
            said += f". {words}: " + ", ".join(f"{name} {count}" for name, count in sorted(report[key].items()))
    return said + "."


def reasoning_section(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The section; empty text where nothing was evaluated."""
    if not found:
        return ""
    parts = [f"<h3>{escaped(name)}</h3>{_table(one['rows'])}{soft(rates(one))}" for name, one in found.items()]
    note = (
        "raw: decoding is left alone. last_parseable: the last answer that stands anywhere in that text, which is what "
        "a rescue must beat. Troubled: the raw trace loops, is cut off, or never ends its thought. Right: per right "
        "answer. High: share of tokens that the high precision decoded."
    )
    return section("Reasoning", "".join(parts) + soft(note))


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = ["policy", *(f"#{title}" for _, title, _ in COLUMNS[1:])]
    made = []
    for row in rows:
        name, *numbers = cells(row)
        made.append([th(name), *(td(text, "number") for text in numbers)])
    return table(heads, made)


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
