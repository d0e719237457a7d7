"""Rows of a plan, the verdict on each, and the choice between them: pure functions over numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["fits", "tight", "no"]


@dataclass(frozen=True)
class Bill:
    """What the largest moment of one phase consists of, in bytes."""

    phase: str
    nbytes: int
    components: dict[str, int]


@dataclass(frozen=True)
class Row:
    """One way of training, with everything that it costs. Bytes; `total` is the device's, tensors and the rest."""

    name: str
    tier: int
    examples: int
    accumulation: int
    checkpointing: bool
    bills: tuple[Bill, ...]
    tensors: int
    total: int
    verdict: Verdict
    allowed: bool
    speed: float
    changes: tuple[str, ...]
    """`key=value` that turn the config into this row."""
    note: str = ""

    @property
    def peak(self) -> Bill:
        return max(self.bills, key=lambda bill: bill.nbytes)

    @property
    def title(self) -> str:
        return f"{self.name}, {self.examples} x {self.accumulation}{', checkpointing' if self.checkpointing else ''}"


@dataclass(frozen=True)
class Plan:
    """All rows, best first, and which of them runs; `chosen` is None when nothing that is allowed fits."""

    model: str
    parameters: int
    tokens: int
    device: str
    base: int
    budget: int
    rows: tuple[Row, ...]
    chosen: Row | None
    nearest: Row | None
    """Without a choice: what comes closest, allowed or not."""
    reason: str


def verdict(total: int, *, margin: int, budget: int) -> Verdict:
    """`fits` leaves the margin free, `tight` eats into it."""
    if total > budget:
        return "no"
    return "fits" if total + margin <= budget else "tight"


def choose(rows: Sequence[Row]) -> Row | None:
    """The allowed row of the best tier that fits with its margin, the fastest of its tier; failing that a tight one."""
    for wanted in ("fits", "tight"):
        fitting = [row for row in rows if row.allowed and row.verdict == wanted]
        if fitting:
            return min(fitting, key=lambda row: (row.tier, -row.speed, row.total))
    return None


def nearest_miss(rows: Sequence[Row]) -> Row | None:
    """The best row that fits but is not allowed, else the one that needs least."""
    fitting = [row for row in rows if row.verdict != "no"]
    if fitting:
        return min(fitting, key=lambda row: (row.verdict != "fits", row.tier, -row.speed))
    return min(rows, key=lambda row: row.total, default=None)


def explain_choice(rows: Sequence[Row], chosen: Row | None) -> str:
    """One sentence: why this row and not a better one."""
    if chosen is None:
        return "nothing that the config allows fits"
    better = [row for row in rows if row.tier < chosen.tier]
    if not better:
        return "the best tier fits"
    large = sorted({row.name for row in better if row.verdict == "no"})
    barred = sorted({row.name for row in better if row.verdict != "no" and not row.allowed} - set(large))
    parts = [f"{', '.join(large)}: too large"] if large else []
    parts += [f"{', '.join(barred)}: not allowed by the config"] if barred else []
    return "; ".join(parts) or "better tiers fit only without their margin"
