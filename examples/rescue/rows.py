"""The rows of a bed's tables: what goes wrong at a precision, and what a policy makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from examples.rescue.traces import Row, in_trouble

POLICIES = ("raw", "last parseable", "stop only", "rescue", "rescue + nested", "planning + rescue")
RATE_COLUMNS = ["precision", "problems", "right", "loop", "unclosed", "hit limit", "in trouble", "tokens"]
POLICY_COLUMNS = [
    "policy",
    "right",
    "right, raw in trouble",
    "right, others",
    "tokens a problem",
    "CPU s a right answer",
    "high-precision tokens",
]


def rate_row(precision: str, rows: Sequence[Row]) -> list[Any]:
    return [
        precision,
        len(rows),
        *(
            _percent(share(rows, test))
            for test in (
                lambda row: row["right"],
                lambda row: row["loop"],
                lambda row: row["unclosed"],
                lambda row: row["limit"],
                in_trouble,
            )
        ),
        round(sum(row["tokens"] for row in rows) / len(rows)),
    ]


def policy_row(policy: str, rows: Sequence[Row], raw: Sequence[Row]) -> list[Any]:
    always = policy not in POLICIES  # one precision above the bed's from the first token to the last
    troubled, others = split(rows, raw)
    right = sum(row["right"] for row in rows)
    tokens = sum(row["tokens"] for row in rows)
    return [
        policy,
        _percent(right / len(rows)),
        _percent(share(troubled, lambda row: row["right"])),
        _percent(share(others, lambda row: row["right"])),
        round(tokens / len(rows)),
        f"{sum(row['seconds'] for row in rows) / right:.2f}" if right else "none right",
        _percent(1.0 if always else sum(row["high_tokens"] for row in rows) / tokens),
    ]


def split(rows: Sequence[Row], raw: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """`rows` whose raw trace is in trouble, and the others."""
    pairs = list(zip(rows, raw, strict=True))
    return [row for row, one in pairs if in_trouble(one)], [row for row, one in pairs if not in_trouble(one)]


def share(rows: Sequence[Row], test: Callable[[Row], object]) -> float:
    return sum(bool(test(row)) for row in rows) / len(rows) if rows else 0.0


def per_correct(rows: Sequence[Row]) -> float | None:
    right = sum(row["right"] for row in rows)
    return round(sum(row["seconds"] for row in rows) / right, 3) if right else None


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
