"""Algorithms that divide by a slope or take its sign: MEAZO, FZOO, ZO-Sign, ZO-Muon and LOZO on toy problems."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import numpy as np
import pytest

from lowmem.methods.zo.algorithm import Algorithm, Evaluation, Scales
from lowmem.methods.zo.fzoo import Fzoo
from lowmem.methods.zo.history import History
from lowmem.methods.zo.lozo import Lozo
from lowmem.methods.zo.meazo import BETA, CLIP, Meazo
from lowmem.methods.zo.perturb import Direction
from lowmem.methods.zo.snr import BURN_IN, DIRECTIONS, LARGEST_SHARE, SnrNewton
from lowmem.methods.zo.zo_muon import ZoMuon
from lowmem.methods.zo.zo_sign import ZoSign
from tests.oracles.toy import ToyRun, quadratic, rademacher

EPS = 2.0**-10
NORMALISED: dict[str, Callable[[], Algorithm]] = {
    "meazo": lambda: Meazo(EPS),
    "fzoo": lambda: Fzoo(EPS, 4),
    "zo_sign": lambda: ZoSign(EPS, History(0.9, 8)),
    "zo_muon": lambda: ZoMuon(EPS, History(0.9, 8), probes=3, top_k=0),
}
ALL = NORMALISED | {"lozo": lambda: Lozo(EPS, History(0.5, 4))}
RATES = {"meazo": 3e-3, "fzoo": 1e-2, "zo_sign": 1e-3, "zo_muon": 1e-3, "lozo": 5e-3}


@pytest.mark.parametrize("name", NORMALISED)
def test_scaling_the_loss_by_a_power_of_two_changes_no_iterate(name: str) -> None:
    loss, x = quadratic(40, noise=0.02)
    plain = ToyRun(NORMALISED[name](), loss, x)
    scaled = ToyRun(NORMALISED[name](), lambda y, step: loss(y, step) * 2.0**20, x)
    for step in range(40):
        plain.step(step, lr=1e-3)
        scaled.step(step, lr=1e-3)
        assert np.array_equal(plain.x, scaled.x)


@pytest.mark.parametrize("name", ALL)
def test_loss_of_a_quadratic_falls_by_more_than_half(name: str) -> None:
    loss, x = quadratic(30)
    run = ToyRun(ALL[name](), loss, x)
    for step in range(400):
        run.step(step, lr=RATES[name])
    assert loss(run.x, 0)[0] < 0.5 * loss(x, 0)[0]


@pytest.mark.parametrize("name", ALL)
def test_a_batch_that_is_not_finite_is_skipped_without_damage(name: str) -> None:
    loss, x = quadratic(30)
    run = ToyRun(ALL[name](), loss, x)
    for step in range(3):
        run.step(step, lr=1e-3)
    good, numbers = run.x.copy(), run.algorithm.numbers()
    run.loss = lambda y, step: np.array([math.nan, 1.0])
    assert run.step(3, lr=1e-3).skipped
    assert np.array_equal(run.x, good)
    assert run.algorithm.numbers() == numbers


@pytest.mark.parametrize("name", ALL)
def test_numbers_continue_exactly(name: str) -> None:
    loss, x = quadratic(30, noise=0.02)
    straight = ToyRun(ALL[name](), loss, x)
    for step in range(12):
        straight.step(step, lr=1e-3)
    copy = ALL[name]()
    copy.load_numbers(straight.algorithm.numbers())
    resumed = ToyRun(copy, loss, straight.x)
    for step in range(12, 24):
        straight.step(step, lr=1e-3)
        resumed.step(step, lr=1e-3)
    assert np.array_equal(straight.x, resumed.x)


def test_meazo_divides_by_the_root_of_the_corrected_moment_and_clips_outliers() -> None:
    loss, x = quadratic(20)
    run, moment = ToyRun(Meazo(EPS), loss, x), 0.0
    for step in range(15):
        before, z = run.x, rademacher(Direction(step), 20)
        slope = float((np.logspace(0, -2, 20) * before) @ z)
        moment = BETA * moment + (1 - BETA) * slope**2
        run.step(step, lr=0.01)
        ratio = slope / math.sqrt(moment / (1 - BETA ** (step + 1)))
        assert np.allclose(before - run.x, 0.01 * max(-CLIP, min(CLIP, ratio)) * z, atol=1e-9)
    run.loss = lambda y, step: loss(y, step) * 1e6
    before = run.x
    run.step(15, lr=0.01)
    assert float(np.abs(before - run.x).max()) == pytest.approx(0.01 * CLIP)


def test_fzoo_divides_one_sided_differences_by_the_spread_of_the_losses() -> None:
    loss, x = quadratic(20)
    run = ToyRun(Fzoo(EPS, 3), loss, x)
    directions = [rademacher(Direction(0, i), 20) for i in range(3)]
    losses = [float(loss(x + EPS * z, 0)[0]) for z in directions]
    here = float(loss(x, 0)[0])
    spread = statistics.stdev(losses)
    move = run.step(0, lr=0.1)
    expected = sum(0.1 / (3 * spread) * (f - here) * z for f, z in zip(losses, directions, strict=True))
    assert np.allclose(x - run.x, expected, rtol=1e-12)
    assert move.forwards == run.calls == 4


def test_fzoo_skips_a_loss_that_its_probes_do_not_change() -> None:
    run = ToyRun(Fzoo(EPS, 3), lambda y, step: np.ones(2), np.ones(5))
    assert run.step(0, lr=0.1).skipped


def test_zo_muon_asks_for_a_spectral_step_along_its_history() -> None:
    loss, x = quadratic(20)
    algorithm = ZoMuon(EPS, History(0.9, 2), probes=3, top_k=2)
    run = ToyRun(algorithm, loss, x)
    for step in range(3):
        move = run.step(step, lr=0.1)
    assert move.form is not None
    assert (move.form.kind, move.form.length, move.form.top_k) == ("spectral", 0.1, 2)
    assert [z.step for z, _ in move.terms] == [1, 1, 1, 2, 2, 2]
    assert move.forwards == 4


def test_snr_never_claims_more_than_its_share_of_the_loss() -> None:
    """A straight slope has no curvature to bound the step: the loss does. Where the loss is not positive nothing does,
    and lengths stay finite because the radius has an upper end."""

    def line(y: np.ndarray, step: int) -> np.ndarray:
        return np.array([1.0, 1.0]) + 1e3 * y[:1] + 1e-3 * float(y @ y)

    x = np.zeros(16) + 0.01
    run = ToyRun(SnrNewton(Scales(rms=0.01, resolution=1e-16)), line, x)
    for step in range(BURN_IN):
        assert run.step(step).terms == ()
    here = float(line(run.x, 0)[0])
    move = run.step(BURN_IN)
    claimed = sum(coef * move.details["projected_grad"] for _, coef in move.terms[:1]) * DIRECTIONS
    assert 0 < claimed <= LARGEST_SHARE * here * 1.01


def test_snr_moves_where_the_loss_is_negative() -> None:
    loss, x = quadratic(30)
    run = ToyRun(SnrNewton(Scales(rms=0.1, resolution=1e-16)), lambda y, step: loss(y, step) - 100.0, x)
    for step in range(100):
        run.step(step)
    assert loss(run.x, 0)[0] < 0.8 * loss(x, 0)[0]


def test_one_example_has_no_spread_and_is_refused() -> None:
    algorithm = SnrNewton(Scales(rms=1.0, resolution=1e-16))
    with pytest.raises(Exception, match="raise per_device_train_batch_size, or use step_rule: parameter_free"):
        algorithm.step(lambda direction, eps: Evaluation((1.0,), (1.0,)), lr=1.0, step=0)
