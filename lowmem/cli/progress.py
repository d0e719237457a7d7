"""Events as a live bar or as plain lines; both say the same things in the same words."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO, assert_never

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from lowmem.events import (
    BlockCoded,
    CheckpointSaved,
    EvalDone,
    Event,
    Notice,
    RunFinished,
    RunStarted,
    StepDone,
    TextDelta,
)
from lowmem.units import format_bytes, format_seconds

PLAIN_LINES = 50
"""Step lines of a whole run in a log file; more are written when steps are slow."""
PLAIN_SECONDS = 15.0
LONGEST_STEP = len("step 99999/99999")
BAR_WIDTH = 120
"""Columns that a terminal needs to have room for a bar beside the numbers."""


class Pace:
    """Time that is left, from the steps since the run was started or resumed, evaluations not counted."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._first = 0
        self.total = 0

    def start(self, event: RunStarted) -> None:
        self._since, self._first, self.total = self._clock(), event.start_step, event.total_steps

    def pause(self, event: EvalDone) -> None:
        self._since += event.seconds

    def left(self, step: int) -> str:
        done = step - self._first
        if done <= 0 or self.total <= step:
            return "0s"
        return format_seconds((self._clock() - self._since) / done * (self.total - step))


def step_text(event: StepDone, pace: Pace) -> str:
    """What a step says, the most wanted first: a narrow terminal cuts the end off."""
    memory = f"memory {format_bytes(event.memory_bytes)} (peak {format_bytes(event.peak_bytes)})"
    speed = f"{event.tokens_per_second:,.0f} tok/s"
    return f"loss {event.loss:.4f}  eta {pace.left(event.step)}  {speed}  {memory}  lr {event.lr:.3g}"


def line_text(event: Event) -> str | None:
    """The line that an event is worth; None for those that are drawn otherwise."""
    match event:
        case Notice():
            return f"note: {event.message}"
        case RunStarted():
            share = f"{event.trainable_parameters:,} of {event.total_parameters:,} parameters trained"
            resumed = f", resumed at step {event.start_step} from {event.resumed_from}" if event.resumed_from else ""
            return f"{event.method}: {event.total_steps} steps, {share}{resumed}"
        case EvalDone():
            values = ", ".join(f"{name} {value:.4f}" for name, value in event.metrics.items())
            best = " (best so far)" if event.is_best else ""
            step = f" at step {event.step}" if event.step else ""
            return f"eval {event.split}{step}: {values}{best} in {format_seconds(event.seconds)}"
        case CheckpointSaved():
            return f"saved step {event.step} ({event.reason}) in {event.folder}"
        case RunFinished():
            peak = format_bytes(event.peak_bytes)
            return f"{event.reason} at step {event.step} after {format_seconds(event.seconds)}, peak {peak}"
        case BlockCoded():
            when = f"in {format_seconds(event.seconds)}" if event.seconds else "coded before"
            return f"block {event.block}/{event.blocks}: error {event.error:.4f}, {when}"
        case StepDone() | TextDelta():
            return None
        case _:
            assert_never(event)


class PlainProgress:
    """Lines in a log: about `PLAIN_LINES` of them for the steps, the first and the last among them."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._pace = Pace(clock)
        self._shown_step = 0
        self._shown_at = clock()

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._pace.start(event)
            self._shown_step = 0
        elif isinstance(event, EvalDone):
            self._pace.pause(event)
        text = line_text(event)
        if isinstance(event, StepDone) and self._is_due(event.step):
            self._shown_step, self._shown_at = event.step, self._clock()
            text = f"step {event.step}/{self._pace.total}  {step_text(event, self._pace)}"
        if text is not None:
            self._stream.write(f"{text}\n")
            self._stream.flush()

    def _is_due(self, step: int) -> bool:
        first, last = self._shown_step == 0, step >= self._pace.total
        far = (step - self._shown_step) * PLAIN_LINES >= self._pace.total
        return first or last or far or self._clock() - self._shown_at >= PLAIN_SECONDS


def _column(*, whole: bool) -> Column:
    """A column that stays on its line: shown whole, or cut at the edge of the terminal."""
    return Column(no_wrap=True, overflow="ellipsis", min_width=LONGEST_STEP if whole else None)


class LiveProgress:
    """One bar that stays at the bottom of the terminal while other lines scroll above it."""

    def __init__(self, console: Console) -> None:
        self._pace = Pace()
        self._task: TaskID | None = None
        self._progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}", table_column=_column(whole=True)),
            *([BarColumn(bar_width=20)] if console.width >= BAR_WIDTH else []),
            TextColumn("{task.description}", table_column=_column(whole=False)),
            console=console,
            transient=True,
        )

    def __enter__(self) -> LiveProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._pace.start(event)
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task("", total=event.total_steps, completed=event.start_step)
        elif isinstance(event, EvalDone):
            self._pace.pause(event)
        elif isinstance(event, StepDone) and self._task is not None:
            text = escape(step_text(event, self._pace))
            self._progress.update(self._task, completed=event.step, description=text)
        text = line_text(event) or ""
        if text:
            self._progress.console.print(Text(text), soft_wrap=True)
