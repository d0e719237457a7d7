from __future__ import annotations

import pytest

from lowmem.methods.zo.history import History
from lowmem.methods.zo.perturb import Direction


def test_terms_are_the_exponential_average_of_the_last_steps() -> None:
    history, beta, window = History(0.8, 4), 0.8, 4
    average: dict[Direction, float] = {}
    for step in range(7):
        slopes = [(Direction(step, probe), float(step + 10 * probe + 1)) for probe in range(2)]
        average = {z: beta * value for z, value in average.items() if z.step > step - window}
        average |= {z: (1 - beta) * value for z, value in slopes}
        history.add(step, slopes)
        assert dict(history.terms(step)) == pytest.approx(average)


def test_no_momentum_leaves_the_newest_slope_alone() -> None:
    history = History(0.0, 3)
    for step in range(4):
        history.add(step, [(Direction(step), 1.0 + step)])
    assert [coef for _, coef in history.terms(3)] == [0.0, 0.0, 4.0]


def test_numbers_rebuild_the_history() -> None:
    history, copy = History(0.9, 3), History(0.9, 3)
    for step in range(5):
        history.add(step, [(Direction(step, 1), -0.5 * step)])
    copy.load_numbers(history.numbers())
    assert copy.terms(5) == history.terms(5)
    assert copy.numbers() == history.numbers()
