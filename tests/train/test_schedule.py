from __future__ import annotations

import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem.train.schedule import Schedule, warmup_steps

Kind = Literal["constant", "linear", "cosine"]
KINDS: tuple[Kind, ...] = ("constant", "linear", "cosine")


def rates(kind: Kind, *, total: int, warmup: int = 0, peak: float = 1.0) -> list[float]:
    schedule = Schedule(kind, peak, total, warmup)
    return [schedule.rate(step) for step in range(total)]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.25, 0.5, 0.75, 1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
    ],
)
def test_three_warmup_steps_then_four_of_the_shape(kind: Kind, expected: list[float]) -> None:
    assert rates(kind, total=7, warmup=3) == pytest.approx(expected, rel=1e-12)


def test_the_peak_scales_every_rate() -> None:
    assert rates("linear", total=4, peak=2e-4) == pytest.approx([2e-4, 1.5e-4, 1e-4, 0.5e-4])


def test_one_step_runs_at_the_peak() -> None:
    assert [rates(kind, total=1) for kind in KINDS] == [[1.0], [1.0], [1.0]]


def test_warmup_may_take_the_whole_run() -> None:
    for kind in KINDS:
        assert rates(kind, total=3, warmup=3) == pytest.approx([0.25, 0.5, 0.75])


@given(kind=st.sampled_from(KINDS), total=st.integers(1, 200), share=st.floats(0, 1))
def test_every_step_has_a_positive_rate_that_rises_to_the_peak_then_never_rises(
    kind: Kind, total: int, share: float
) -> None:
    warmup = int(share * total)
    values = rates(kind, total=total, warmup=warmup)
    assert all(0 < value <= 1 for value in values)
    assert values[:warmup] == sorted(values[:warmup])
    assert values[warmup:] == sorted(values[warmup:], reverse=True)
    if warmup < total:
        assert values[warmup] == 1.0


@pytest.mark.parametrize(
    ("steps", "ratio", "total", "expected"),
    [(0, 0.0, 100, 0), (0, 0.03, 100, 3), (0, 0.031, 100, 4), (7, 0.5, 100, 7), (500, 0.0, 100, 100), (0, 1.0, 9, 9)],
)
def test_warmup_is_the_number_of_steps_or_the_ratio_rounded_up(
    steps: int, ratio: float, total: int, expected: int
) -> None:
    assert warmup_steps(steps=steps, ratio=ratio, total=total) == expected
