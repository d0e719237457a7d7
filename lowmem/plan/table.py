"""A plan as rows of text, and one row's whole bill."""

from __future__ import annotations

from collections.abc import Sequence

from lowmem.plan.fit import Plan, Row
from lowmem.units import format_bytes

COLUMNS = ("", "method", "tier", "batch", "ckpt", "memory", "peak in", "verdict", "speed", "what to set")


def table_rows(plan: Plan) -> list[list[str]]:
    """One line per row; `>` marks the one that runs."""
    return [
        [
            ">" if row is plan.chosen else "",
            row.name,
            str(row.tier),
            f"{row.examples} x {row.accumulation}",
            "yes" if row.checkpointing else "no",
            format_bytes(row.total),
            row.peak.phase,
            row.verdict if row.allowed or row.verdict == "no" else f"{row.verdict}, not allowed",
            f"{row.speed:.2f}",
            " ".join(row.changes) or "as it is",
        ]
        for row in plan.rows
    ]


def bill_lines(plan: Plan, row: Row) -> list[str]:
    """Every phase of `row` with its components, largest phase first, and what the device itself takes."""
    lines = [
        f"{row.title}: {format_bytes(row.total)} of {format_bytes(plan.budget)}",
        f"  {plan.device} itself: {format_bytes(plan.base)}",
    ]
    for bill in sorted(row.bills, key=lambda bill: -bill.nbytes):
        lines.append(f"  {bill.phase}: {format_bytes(bill.nbytes)}")
        parts = sorted(bill.components.items(), key=lambda item: -item[1])
        lines += [f"    {name}: {format_bytes(nbytes)}" for name, nbytes in parts]
    return lines


def find_row(rows: Sequence[Row], text: str) -> Row | None:
    """The row that `text` means: its number from 1, or the first whose title begins with it."""
    if text.isdigit():
        return rows[int(text) - 1] if 1 <= int(text) <= len(rows) else None
    return next((row for row in rows if row.title.startswith(text)), None)
