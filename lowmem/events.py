"""What a job reports while it runs: frozen records, turned into `metrics.jsonl` and into progress bars elsewhere.

Fields that depend on the clock or the machine are listed in `TIMING_FIELDS`: everything else is identical
between a run and the same run killed and resumed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TIMING_FIELDS = frozenset({"time", "seconds", "tokens_per_second", "memory_bytes", "peak_bytes", "resumed_from"})


@dataclass(frozen=True)
class Notice:
    """Something the user should know once: an alias used, a concession made, a sample truncated."""

    message: str


@dataclass(frozen=True)
class RunStarted:
    method: str
    total_steps: int
    start_step: int
    trainable_parameters: int
    total_parameters: int
    resumed_from: str | None = None
    processes: int = 1


@dataclass(frozen=True)
class StepDone:
    """One optimizer step. `loss` is the token- or example-weighted mean over the whole effective batch."""

    step: int
    epoch: float
    loss: float
    lr: float
    tokens: int
    """Tokens seen so far, padding excluded."""
    seconds: float
    tokens_per_second: float
    memory_bytes: int
    peak_bytes: int
    details: dict[str, float] = dataclasses.field(default_factory=dict)
    """What the method adds: grad_norm, projected_grad, gamma, forwards, skipped…"""


@dataclass(frozen=True)
class EvalDone:
    """`metrics` holds at least `loss`; `split` is "before", "during", "after" or the name of a dataset."""

    step: int
    split: str
    metrics: dict[str, float]
    seconds: float
    is_best: bool = False


@dataclass(frozen=True)
class CheckpointSaved:
    step: int
    folder: str
    reason: str


@dataclass(frozen=True)
class RunFinished:
    step: int
    reason: str
    """"completed", "early_stopping" or "interrupted"."""
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class BlockCoded:
    """The linear layers of block `block` of `blocks` are coded, or were by a run before. `error`: the mean of their
    losses, relative to the weight."""

    block: int
    blocks: int
    error: float
    seconds: float


@dataclass(frozen=True)
class TextDelta:
    """A piece of generated text, complete characters only."""

    text: str


Event = Notice | RunStarted | StepDone | EvalDone | CheckpointSaved | RunFinished | BlockCoded | TextDelta
Sink = Callable[[Event], None]


def as_record(event: Event) -> dict[str, Any]:
    """The event as one JSON-ready dict with its kind under `"event"`."""
    return {"event": type(event).__name__, **dataclasses.asdict(event)}
