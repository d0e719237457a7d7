from __future__ import annotations

import math

import pytest
import torch

from lowmem.methods.rules.annealing import (
    SAMPLE,
    folded_cauchy_quantile,
    location_and_scale,
    soft_progress,
    temperature,
)
from lowmem.methods.rules.muon import Muon
from lowmem.methods.rules.signum import Signum
from lowmem.methods.rules.softmuon import ROOT_STEPS, SoftMuon, inverse_root, soft_msign
from lowmem.methods.rules.softsignum import SATURATION, SoftSignum
from tests.methods.rules.test_spectral import grad, walk


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.7, 0.99])
@pytest.mark.parametrize(("location", "scale"), [(0.0, 2.0), (0.7, 1.0), (-5.0, 0.1)])
def test_the_quantile_inverts_the_law_of_a_folded_cauchy(p: float, location: float, scale: float) -> None:
    q = float(folded_cauchy_quantile(p, number(location), number(scale)))
    law = (math.atan((q - location) / scale) - math.atan((-q - location) / scale)) / math.pi
    assert q >= 0
    assert law == pytest.approx(p, abs=1e-9)
    if location == 0:
        assert q == pytest.approx(scale * math.tan(math.pi * p / 2), rel=1e-6)


def test_the_temperature_starts_at_its_limit_and_never_rises() -> None:
    location, scale = number(0.01), number(0.2)
    taus = [float(temperature(p / 50, location, scale, saturation=SATURATION, tau_max=500.0)) for p in range(50)]
    assert taus[0] == 500.0
    assert taus == sorted(taus, reverse=True)
    assert taus[-1] == 1.0
    assert math.tanh(SATURATION) == pytest.approx(1 - 1e-4)
    nothing = torch.zeros(())
    assert float(temperature(0.5, nothing, nothing, saturation=SATURATION, tau_max=20.0)) == 20.0


def test_a_run_is_hard_first_and_its_soft_part_ends_below_one() -> None:
    progress = [soft_progress(t, total=10, hard_fraction=0.6) for t in range(1, 13)]
    assert progress == [None] * 6 + [0.0, 0.25, 0.5, 0.75, 0.75, 0.75]  # longer than planned: it stays where it ended
    assert {soft_progress(t, total=10, hard_fraction=1.0) for t in range(1, 13)} == {None}


def test_location_and_scale_of_a_large_tensor_come_from_a_sample_of_it() -> None:
    values = torch.arange(2 * SAMPLE + 10, dtype=torch.float32)
    location, scale = location_and_scale(values)
    assert float(location) == pytest.approx(SAMPLE, rel=1e-4)
    assert float(scale) == pytest.approx(SAMPLE / 2, rel=1e-4)


def test_before_it_softens_softsignum_is_signum_and_softmuon_is_muon() -> None:
    torch.testing.assert_close(walk(SoftSignum(100), lr=0.01), walk(Signum(), lr=0.01), rtol=0, atol=0)
    torch.testing.assert_close(walk(SoftMuon(100), lr=0.01), walk(Muon(), lr=0.01), rtol=0, atol=0)


def moved(rule: SoftSignum | SoftMuon, average: torch.Tensor, tau: float) -> torch.Tensor:
    """The step of a rule deep in its soft part, at momentum `average`, where the law gives the temperature `tau`."""
    weight = torch.zeros_like(average)
    state = rule.init(weight)
    state["exp_avg"].copy_(average)
    p = soft_progress(9, total=rule.total_updates, hard_fraction=rule.hard_fraction)
    assert p
    saturation = SATURATION if isinstance(rule, SoftSignum) else 0.9999 / math.sqrt(1 - 0.9999**2)
    state["scale"].fill_(saturation / tau / math.tan(math.pi * p / 2))
    rule.update_(weight, average, state, lr=1.0, t=9, rounding_key=0)
    return -weight


def test_softsignum_is_the_sign_when_hot_and_linear_when_cold() -> None:
    average = grad(3)
    rule = SoftSignum(total_updates=10, hard_fraction=0.5, tau_max=1e9)
    torch.testing.assert_close(moved(rule, average, 1e7), average.sign())
    torch.testing.assert_close(moved(rule, 1e-3 * average, 1.5), 1.5e-3 * average, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(moved(rule, average, 2.0), (2.0 * average).tanh(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(moved(rule, -average, 2.0), -moved(rule, average, 2.0), rtol=0, atol=0)


def test_the_law_is_fitted_once_at_the_first_soft_update() -> None:
    rule = SoftSignum(total_updates=10, hard_fraction=0.5)
    weight = torch.zeros(24, 8)
    state = rule.init(weight)
    for t in range(1, 9):
        rule.update_(weight, grad(t), state, lr=0.01, t=t, rounding_key=t)
        if t == 5:
            assert not state["scale"]
        if t == 6:
            fitted = {name: state[name].clone() for name in ("location", "scale")}
            assert fitted["location"] == state["exp_avg"].median()
            assert fitted["scale"] == (state["exp_avg"] - fitted["location"]).abs().median()
    assert all(torch.equal(state[name], value) for name, value in fitted.items())


@pytest.mark.parametrize("shape", [(24, 8), (8, 24)])
@pytest.mark.parametrize("tau", [0.1, 3.0, 100.0])
def test_softmuon_keeps_singular_vectors_and_saturates_singular_values(shape: tuple[int, int], tau: float) -> None:
    matrix = grad(1, shape)
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    expected = u @ torch.diag(tau * s / (1 + (tau * s) ** 2).sqrt()) @ vh
    found = soft_msign(matrix, torch.tensor(tau)).double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    rule = SoftMuon(total_updates=10, hard_fraction=0.5, momentum=0.0, nesterov=False, scale="aspect")
    if tau > 1:
        step = moved(rule, matrix, tau) / math.sqrt(max(1.0, shape[0] / shape[1]))
        torch.testing.assert_close(step.double(), expected, rtol=1e-3, atol=1e-4)


def test_iterations_agree_with_the_exact_root_where_the_direction_is_softest_and_hardest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    matrix = grad(2, (40, 30))
    for tau in (0.1, 1.0, 20.0):
        exact = soft_msign(matrix, torch.tensor(tau))
        with monkeypatch.context() as patch:
            patch.setattr("lowmem.methods.rules.softmuon.EXACT", 4)
            iterated = soft_msign(matrix, torch.tensor(tau))
        assert float((iterated - exact).norm() / exact.norm()) < 0.05
    condition = torch.diag(torch.logspace(-3.5, 0, 12))
    torch.testing.assert_close(
        inverse_root(condition, ROOT_STEPS), torch.diag(condition.diagonal().rsqrt()), rtol=0.05, atol=0.01
    )


@pytest.mark.parametrize("exact", [True, False])
def test_what_a_matrix_of_low_rank_does_not_span_stays_still_at_any_temperature(
    exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowmem.methods.rules.softmuon.EXACT", 256 if exact else 4)
    thin = 1e-4 * grad(1, (40, 3)) @ grad(2, (3, 30))
    values = torch.linalg.svdvals(soft_msign(thin, torch.tensor(1e9)).double())
    assert float(values[0]) < 1.05
    assert float(values[2]) > 0.5
    assert float(values[3]) < 0.01
    assert not soft_msign(torch.zeros(6, 4), torch.tensor(1e9)).any()
