from __future__ import annotations

import pytest
import torch

from lowmem.methods.rules.signum import Signum
from lowmem.methods.rules.stosign import StoSign, random_sign

DRAWS = 400_000


def mean_sign(mean: float, envelope: float, key: int = 1) -> float:
    shape = (400, DRAWS // 400)
    signs = random_sign(torch.full(shape, mean), torch.full(shape, envelope), key)
    assert set(signs.unique().tolist()) <= {-1.0, 1.0}
    return float(signs.double().mean())


@pytest.mark.parametrize("ratio", [-0.7, -0.01, 0.0, 0.3, 0.95])
def test_mean_of_the_random_sign_is_the_momentum_over_its_envelope(ratio: float) -> None:
    # Variance 1 - ratio^2 per draw: four standard errors, and the resolution of the 16 bits.
    four = 4 * ((1 - ratio**2) / DRAWS) ** 0.5 + 2**-16
    assert mean_sign(2 * ratio, 2.0) == pytest.approx(ratio, abs=four)


def test_tight_envelope_gives_the_sign_and_no_envelope_gives_zero() -> None:
    mean = torch.tensor([[0.5, -3.0, 1e-20, 0.0]])
    assert random_sign(mean, mean.abs(), 7).tolist() == [[1.0, -1.0, 1.0, 0.0]]


def test_first_update_is_signums_and_a_growing_gradient_keeps_it_so() -> None:
    grad = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    random, plain = torch.zeros(7, 5), torch.zeros(7, 5)
    states = StoSign().init(random), Signum().init(plain)
    for t in range(1, 6):  # |m| grows, so the envelope is |m|
        StoSign().update_(random, grad * t, states[0], lr=0.1, t=t, rounding_key=t)
        Signum().update_(plain, grad * t, states[1], lr=0.1, t=t, rounding_key=t)
    assert torch.equal(random, plain)


@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_envelope_bounds_the_momentum_and_without_decay_never_falls(decay: float) -> None:
    rule, weight = StoSign(envelope_decay=decay), torch.zeros(7, 5)
    state, before = rule.init(weight), torch.zeros(7, 5)
    for t in range(1, 30):
        grad = torch.randn(7, 5, generator=torch.Generator().manual_seed(t)) / t
        rule.update_(weight, grad, state, lr=0.1, t=t, rounding_key=t)
        assert bool((state["envelope"] >= state["exp_avg"].abs()).all())
        assert decay < 1 or bool((state["envelope"] >= before).all())
        before = state["envelope"].clone()


def test_draws_are_a_function_of_the_key_and_independent_between_keys() -> None:
    mean, envelope = torch.zeros(300, 300), torch.ones(300, 300)
    one, again, other = (random_sign(mean, envelope, key) for key in (1, 1, 2))
    assert torch.equal(one, again)
    assert abs(float((one * other).mean())) < 4 / 300


def test_random_signs_are_independent_of_the_rounding_of_bf16_weights() -> None:
    """A weight halfway between two bf16 numbers after the step rounds up as often after +1 as after -1."""
    shape, lr = (300, 300), 2.0**-9  # half the spacing of bf16 below 1, a quarter above
    weight = torch.full(shape, 0.75, dtype=torch.bfloat16)
    state = {"exp_avg": torch.full(shape, 1e-6), "envelope": torch.ones(shape)}
    StoSign(momentum=0.999).update_(weight, torch.zeros(shape), state, lr=lr, t=1, rounding_key=5)
    assert float(weight.float().mean()) - 0.75 == pytest.approx(0, abs=4 * 2**-8.5 / 300)
    assert set(weight.float().unique().tolist()) == {0.75 - 2**-8, 0.75, 0.75 + 2**-8}


def test_average_reaches_the_minimum_where_the_signs_of_the_gradients_point_away() -> None:
    """Nine of ten gradients are +1, the tenth is -19: the mean, -1, goes right, the majority of signs left."""
    random, plain = torch.zeros(1000), torch.zeros(1000)
    rules = StoSign(momentum=0.0), Signum(momentum=0.0)
    states = rules[0].init(random), rules[1].init(plain)
    for t in range(1, 501):
        grad = torch.full((1000,), -19.0 if t % 10 == 1 else 1.0)
        rules[0].update_(random, grad, states[0], lr=0.01, t=t, rounding_key=t)
        rules[1].update_(plain, grad, states[1], lr=0.01, t=t, rounding_key=t)
    assert float(plain.mean()) < -3.9
    assert float(random.mean()) == pytest.approx(500 * 0.01 / 19, abs=0.03)
