from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from lowmem.errors import ConfigError
from lowmem.kernels.dispatch import direction
from lowmem.kernels.noise import Kind
from lowmem.methods.zo.adanaged import CAP, AdaNaged
from lowmem.methods.zo.algorithm import Algorithm, Evaluation, Scales
from lowmem.methods.zo.mezo import Mezo
from lowmem.methods.zo.perturb import Direction
from lowmem.methods.zo.snr import SnrNewton
from tests.oracles.toy import ToyRun, quadratic, rademacher

EPSILON = float(np.finfo(np.float64).eps)


def scales(x: np.ndarray) -> Scales:
    return Scales(rms=float(np.sqrt(np.mean(x * x))), resolution=EPSILON)


FREE: dict[str, Callable[[np.ndarray], Algorithm]] = {
    "adanaged": lambda x: AdaNaged(scales(x)),
    "adanaged-k1": lambda x: AdaNaged(scales(x), period=1),
    "snr": lambda x: SnrNewton(scales(x)),
}


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_scaling_the_loss_by_a_power_of_two_changes_no_iterate(name: str, noise: float) -> None:
    loss, x = quadratic(40, noise=noise)
    plain = ToyRun(FREE[name](x), loss, x)
    scaled = ToyRun(FREE[name](x), lambda y, step: loss(y, step) * 2.0**20, x)
    for step in range(60):
        plain.step(step)
        scaled.step(step)
        assert np.array_equal(plain.x, scaled.x)


@pytest.mark.parametrize("name", FREE)
def test_scaling_the_parameters_by_a_power_of_two_scales_every_iterate(name: str) -> None:
    loss, x = quadratic(40, noise=0.02)
    plain = ToyRun(FREE[name](x), loss, x)
    scaled = ToyRun(FREE[name](8 * x), lambda y, step: loss(y / 8, step), 8 * x)
    for step in range(60):
        plain.step(step)
        scaled.step(step)
        assert np.array_equal(8 * plain.x, scaled.x)


def test_progress_never_exceeds_the_true_decrease_on_a_convex_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lowmem.methods.zo.adanaged.CONFIDENCE", 0.0)
    loss, x = quadratic(50)
    algorithm = AdaNaged(scales(x), period=1)
    run = ToyRun(algorithm, loss, x)
    start = loss(x, 0)[0]
    for step in range(200):
        before = loss(run.x, 0)[0]
        run.step(step)
        progress = algorithm.numbers()["progress"]
        assert progress is not None
        assert progress <= start - before + 1e-9


def test_distance_never_falls_and_the_step_never_exceeds_the_newton_cap() -> None:
    loss, x = quadratic(50, noise=0.05)
    algorithm = AdaNaged(scales(x))
    run, last = ToyRun(algorithm, loss, x), 0.0
    for step in range(150):
        run.step(step)
        numbers = {key: float(value) for key, value in algorithm.numbers().items() if value is not None}
        assert numbers["D"] >= last
        assert numbers["gamma"] <= CAP * numbers["slope"] / numbers["curvature"] * (1 + 1e-12)
        last = numbers["D"]


@pytest.mark.slow
def test_untuned_adanaged_solves_a_quadratic_of_400_dimensions() -> None:
    loss, x = quadratic(400)
    run = ToyRun(AdaNaged(scales(x)), loss, x)
    for step in range(6000):
        run.step(step)
    assert loss(run.x, 0)[0] <= 0.03 * loss(x, 0)[0]


@pytest.mark.parametrize(("name", "per_step"), [("adanaged", 2.3), ("snr", 5.5)])
def test_forwards_per_step_are_as_documented(name: str, per_step: float) -> None:
    loss, x = quadratic(30)
    run = ToyRun(FREE[name](x), loss, x)
    for step in range(12):
        run.step(step)
    before, reported = run.calls, 0
    for step in range(12, 112):
        reported += run.step(step).forwards
    assert run.calls - before == reported
    assert reported / 100 == pytest.approx(per_step, abs=0.01)


@pytest.mark.parametrize("name", FREE)
def test_state_is_numbers_and_continues_exactly(name: str) -> None:
    loss, x = quadratic(30, noise=0.02)
    straight = ToyRun(FREE[name](x), loss, x)
    for step in range(25):
        straight.step(step)
    copy = FREE[name](x * 3)
    copy.load_numbers(straight.algorithm.numbers())
    copy.scales = straight.algorithm.scales  # type: ignore[attr-defined]
    resumed = ToyRun(copy, loss, straight.x)
    for step in range(25, 50):
        straight.step(step)
        resumed.step(step)
    assert np.array_equal(straight.x, resumed.x)


@pytest.mark.parametrize("name", FREE)
def test_a_batch_that_is_not_finite_is_skipped_without_damage(name: str) -> None:
    loss, x = quadratic(30)
    run = ToyRun(FREE[name](x), loss, x)
    for step in range(12):
        run.step(step)
    good, run.loss = run.x.copy(), lambda y, step: np.array([math.nan, 1.0])
    assert run.step(12).skipped
    assert np.array_equal(run.x, good)
    run.loss = loss
    before = loss(run.x, 0)[0]
    for step in range(13, 60):
        run.step(step)
    assert loss(run.x, 0)[0] < before


def test_probes_that_change_nothing_are_skipped_and_the_radius_grows() -> None:
    x = np.ones(20) * 0.5
    algorithm = AdaNaged(scales(x))
    run = ToyRun(algorithm, lambda y, step: np.round(y[:1] * 4) / 4 + 1.0, x)  # a staircase: flat near the start
    assert run.step(0).skipped
    assert algorithm.numbers()["widen"] == 2.0


def test_mezo_takes_the_central_difference() -> None:
    loss, x = quadratic(30)
    run = ToyRun(Mezo(eps=1e-3), loss, x)
    z = rademacher(Direction(0), 30)
    slope = float((np.logspace(0, -2, 30) * x) @ z)
    move = run.step(0, lr=0.1)
    assert move.details["projected_grad"] == pytest.approx(slope, rel=1e-9)  # exact for a quadratic
    assert np.allclose(run.x, x - 0.1 * slope * z, rtol=0, atol=1e-12)


def test_snr_needs_two_examples() -> None:
    algorithm = SnrNewton(Scales(rms=1.0, resolution=EPSILON))
    with pytest.raises(ConfigError, match="at least 2 examples"):
        algorithm.step(lambda direction, eps: Evaluation((1.0,), (1.0,)), lr=1.0, step=0)


@pytest.mark.parametrize(("kind", "factor"), [("rademacher", 20), ("gaussian", 22)])
def test_slope_times_direction_is_the_gradient_in_the_mean(kind: Kind, factor: float) -> None:
    """E rho z = g, and E |rho z|^2 = d |g|^2 for signs, (d + 2) |g|^2 for (nearly) normal z; 40,000 draws."""
    g = np.linspace(-1, 2, 20)
    z = direction((40_000, 20), 7, kind).double().numpy()
    estimates = (z @ g)[:, None] * z
    error = estimates.mean(0) - g
    deviations = estimates.std(0) / math.sqrt(len(z))
    assert np.abs(error / deviations).max() < 4.5
    assert (estimates**2).sum(1).mean() == pytest.approx(factor * float(g @ g), rel=0.03)
