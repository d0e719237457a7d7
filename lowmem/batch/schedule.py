"""What is started next and what never will be: a pure function of the ledger and the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lowmem.batch.ledger import Entry, State

LOST: Mapping[State, str] = {
    "failed": "failed",
    "blocked": "is blocked itself",
    "cancelled": "was cancelled",
    "too_large": "does not fit",
}
"""States of a job that those behind it wait for in vain, in words."""


@dataclass(frozen=True)
class Decision:
    """Jobs to start now, in order, and jobs that can no longer run, each with the reason."""

    start: tuple[str, ...]
    block: Mapping[str, str]


def need(entry: Entry) -> int:
    """Bytes to keep free for a job: what was planned, or what it took before where that is more."""
    return max(entry.predicted_bytes or 0, entry.peak_bytes or 0)


def decide(
    entries: Sequence[Entry], *, budget: int, max_parallel: int, continue_on_error: bool = True, stopping: bool = False
) -> Decision:
    """The jobs that fit beside those that run, in the order of the file; a large one does not hold up small ones.

    A job alone may exceed the budget by what it once took beyond its plan: it ran then, and it will not shrink.
    """
    states = {entry.name: entry.state for entry in entries}
    block: dict[str, str] = {}
    for entry in entries:
        lost = [name for name in entry.after if states.get(name) in LOST]
        if entry.state == "waiting" and lost:
            states[entry.name] = "blocked"
            block[entry.name] = f"waits for {lost[0]}, which {LOST[states[lost[0]]]}"
    if stopping or (not continue_on_error and "failed" in states.values()):
        return Decision((), block)
    running = [entry for entry in entries if entry.state == "running"]
    used, start = sum(need(entry) for entry in running), list[str]()
    for entry in entries:
        ready = states[entry.name] == "waiting" and all(states.get(name) == "done" for name in entry.after)
        if not ready or entry.cancel or len(running) + len(start) >= max_parallel:
            continue
        alone = not running and not start
        if used + need(entry) <= budget or alone:
            start.append(entry.name)
            used += need(entry)
    return Decision(tuple(start), block)
