from __future__ import annotations

import io

import pytest
from rich.console import Console

from lowmem.cli.progress import LiveProgress, Pace, PlainProgress, line_text
from lowmem.events import CheckpointSaved, EvalDone, Event, Notice, RunFinished, RunStarted, StepDone, TextDelta


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def step(number: int) -> StepDone:
    return StepDone(number, 0.5, 0.125, 2e-4, 640, 0.1, 1234.5, 2**20, 3 * 2**20)


def start(total: int, first: int = 0) -> RunStarted:
    return RunStarted("MeZO", total, first, 10, 1000, "step-20" if first else None)


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (Notice("[b]x[/b]"), "note: [b]x[/b]"),
        (start(100), "MeZO: 100 steps, 10 of 1,000 parameters trained"),
        (start(100, 20), "MeZO: 100 steps, 10 of 1,000 parameters trained, resumed at step 20 from step-20"),
        (
            EvalDone(3, "during", {"loss": 0.5}, 61.0, is_best=True),
            "eval during at step 3: loss 0.5000 (best so far) in 1m 01s",
        ),
        (CheckpointSaved(3, "runs/x", "best"), "saved step 3 (best) in runs/x"),
        (RunFinished(3, "early_stopping", 3.0, 2**20), "early_stopping at step 3 after 3s, peak 1.00 MiB"),
        (TextDelta("x"), None),
        (step(1), None),
    ],
)
def test_every_event_has_its_line(event: Event, text: str | None) -> None:
    assert line_text(event) == text


def test_the_time_left_counts_from_the_resumed_step() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.start(start(100, 20))
    assert pace.left(20) == "0s"
    clock.now = 30.0
    assert pace.left(30) == "3m 30s"
    assert pace.left(100) == "0s"


def test_evaluations_do_not_count_as_time_of_steps() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.start(start(100))
    clock.now = 70.0
    pace.pause(EvalDone(0, "before", {"loss": 1.0}, 60.0))
    assert pace.left(10) == "1m 30s"


def test_a_log_gets_about_fifty_step_lines_with_the_first_and_the_last() -> None:
    stream = io.StringIO()
    sink = PlainProgress(stream, clock=Clock())
    sink(start(1000))
    for number in range(1, 1001):
        sink(step(number))
    lines = [line for line in stream.getvalue().splitlines() if line.startswith("step")]
    assert 50 <= len(lines) <= 52
    assert lines[0].startswith(
        "step 1/1000  loss 0.1250  eta 0s  1,234 tok/s  memory 1.00 MiB (peak 3.00 MiB)  lr 0.0002"
    )
    assert lines[-1].startswith("step 1000/1000")


def test_slow_steps_are_all_shown() -> None:
    clock, stream = Clock(), io.StringIO()
    sink = PlainProgress(stream, clock=clock)
    sink(start(1000))
    for number in range(1, 6):
        clock.now += 20.0
        sink(step(number))
    assert stream.getvalue().count("\nstep ") == 5


def test_a_terminal_gets_a_bar_and_the_lines_above_it() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=160)
    with LiveProgress(console) as sink:
        sink(Notice("[red]kept[/red]"))
        sink(start(10))
        sink(step(4))
        sink(EvalDone(4, "during", {"loss": 0.5}, 1.0))
        sink(start(20))
    text = stream.getvalue()
    assert "note: [red]kept[/red]" in text
    assert "eval during at step 4: loss 0.5000" in text
    assert "\x1b[" in text


def test_a_narrow_terminal_keeps_step_loss_and_time_left() -> None:
    stream = io.StringIO()
    with LiveProgress(Console(file=stream, force_terminal=True, width=60)) as sink:
        sink(start(10))
        sink(step(4))
    assert "step 4/10" in stream.getvalue()
    assert "loss 0.1250  eta 0s" in stream.getvalue()
