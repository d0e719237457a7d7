"""Rows U1-U4, and the failure of a biased projection that GUM is there to mend."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowmem.config.method import GumMethod
from lowmem.errors import ConfigError
from lowmem.methods.projected.basis import coordinates, leading_basis, random_basis, subtract_projection_
from lowmem.methods.projected.draw import Draw, layer_of, looks
from lowmem.methods.projected.gum import gum_branches
from lowmem.methods.projected.matrix import Branches
from lowmem.methods.rules.muon import Muon
from lowmem.methods.rules.sgd import Sgd
from tests.methods.projected.problem import descend, gaussian, projected

CPU = torch.device("cpu")


def msign(matrix: Tensor) -> Tensor:
    """Compact polar factor, exact."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    keep = s > 1e-9 * s[0]
    return u[:, keep] @ v[keep]


def steps(gamma: int, layers: int) -> tuple[Tensor, Tensor, Tensor]:
    """What one update of plain descent at rate 1 makes of a gradient: low rank, drawn, and the gradient itself."""
    g, moved = gaussian(8, 14, seed=1).double(), {}
    branches = Branches(Sgd(), full_rule=lambda decay: Sgd())
    for seed in range(100):
        weight = torch.zeros(8, 14)
        matrix = projected(weight, branches, rank=3, gamma=gamma, layers=layers, seed=seed)
        drawn = matrix.full
        fixed = random_basis(8, 3, key=5, device=CPU)
        matrix.basis.copy_(fixed)
        matrix.gather(g.float().clone())
        matrix.apply_(factor=1.0, lr=1.0, update=0, key=0)
        moved[drawn] = -weight.double()
    return moved[False], moved[True], g


@pytest.mark.parametrize(("gamma", "layers"), [(1, 2), (1, 4), (3, 4)])
def test_the_mean_over_draws_is_the_gradient(gamma: int, layers: int) -> None:
    low, full, g = steps(gamma, layers)
    q = gamma / layers
    torch.testing.assert_close((1 - q) * low + q * full, g, rtol=1e-5, atol=1e-6)  # the weights are fp32


def test_the_second_moment_is_that_of_the_formula() -> None:
    low, full, g = steps(1, 4)
    basis = random_basis(8, 3, key=5, device=CPU).double()
    inside = basis.T @ g
    expected = inside.square().sum() / 0.75 + (g - basis @ inside).square().sum() / 0.25
    assert float(0.75 * low.square().sum() + 0.25 * full.square().sum()) == pytest.approx(float(expected), rel=1e-5)


def test_every_layer_is_drawn_with_chance_q_and_always_gamma_of_them() -> None:
    names = tuple(f"layers.{i}" for i in range(8))
    draw = Draw(names, 2, 5, seed=3)
    counts = torch.zeros(8)
    for period in range(800):
        drawn = torch.tensor([float(draw.full(name, 5 * period)) for name in names])
        assert drawn.sum() == 2
        assert [draw.full(name, 5 * period + 4) for name in names] == [bool(d) for d in drawn]
        counts += drawn
    deviation = (800 * 0.25 * 0.75) ** 0.5
    assert float((counts - 200).abs().max()) < 4 * deviation


def test_msign_of_a_fresh_view_and_of_its_rest_add_up() -> None:
    g = gaussian(8, 14).double()
    basis = torch.linalg.svd(g)[0][:, :3]
    rest = g - basis @ (basis.T @ g)
    torch.testing.assert_close(basis @ msign(basis.T @ g) + msign(rest), msign(g), rtol=0, atol=1e-10)


def test_the_mean_step_points_along_msign_only_for_one_half_and_unbiased_gains_make_it_so() -> None:
    g = gaussian(8, 14).double()
    basis = torch.linalg.svd(g)[0][:, :3]
    low, full, whole = basis @ msign(basis.T @ g), msign(g - basis @ (basis.T @ g)), msign(g)

    def cosine(q: float, gains: tuple[float, float]) -> float:
        mean = (1 - q) * gains[0] * low + q * gains[1] * full
        return float((mean * whole).sum() / (mean.norm() * whole.norm()))

    def gains(q: float, kind: str) -> tuple[float, float]:
        branches = gum_branches(GumMethod.model_validate({"ns_gain": kind}), q, torch.float32)
        return branches.gain, branches.full_gain

    assert cosine(0.5, gains(0.5, "paper")) == pytest.approx(1, abs=1e-10)
    assert cosine(1 / 16, gains(1 / 16, "paper")) < 0.8
    assert cosine(1 / 16, gains(1 / 16, "unbiased")) == pytest.approx(1, abs=1e-10)
    assert gains(0.25, "unbiased") == pytest.approx((4 / 3, 4))


def test_full_rank_without_draws_is_muon() -> None:
    branches = gum_branches(GumMethod(gamma=0, momentum=0.9), 0.0, torch.float32)
    weight, plain = gaussian(8, 14), gaussian(8, 14)
    rule, state = Muon(0.9, nesterov=False), Muon().init(gaussian(8, 14))
    gradients = [gaussian(8, 14, seed=10 + t) for t in range(6)]
    matrix = projected(weight, branches, rank=8)
    matrix.apply_(factor=1.0, lr=0.0, update=0, key=0)
    descend(matrix, weight, lambda w, t: gradients[t].clone(), 1, lr=0.01)
    rule.update_(plain, gradients[0], state, lr=0.01, t=1, rounding_key=0)
    torch.testing.assert_close(weight, plain, rtol=1e-4, atol=1e-5)
    state["exp_avg"].zero_()  # the first basis replaces the random one, and with it the momentum
    for update in range(1, 6):
        matrix.gather(gradients[update].clone())
        matrix.apply_(factor=1.0, lr=0.01, update=update, key=0)
        matrix.open(update + 1)
        rule.update_(plain, gradients[update], state, lr=0.01, t=update + 1, rounding_key=0)
    torch.testing.assert_close(weight, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("gamma", [0, 1])
def test_a_view_that_shows_only_noise_stalls_galore_and_not_gum(gamma: int) -> None:
    """The gradient's signal is orthogonal to noise that is ten times as strong: the leading directions are noise."""
    target = torch.zeros(8, 12)
    target[4:] = gaussian(4, 12, seed=2)

    def gradient(weight: Tensor, update: int) -> Tensor:
        noise = torch.zeros(8, 12)
        noise[:4] = 10 * gaussian(4, 12, seed=100 + update)
        return (weight - target) * (torch.arange(8) >= 4)[:, None] + noise

    weight = torch.zeros(8, 12)
    method = GumMethod(rank=4, gamma=gamma, period=10)
    branches = gum_branches(method, gamma / 2, torch.float32)
    matrix = projected(weight, branches, rank=4, period=10, gamma=gamma, layers=2)
    before = float((weight - target)[4:].norm())
    descend(matrix, weight, gradient, 1200, lr=0.02)
    after = float((weight - target)[4:].norm())
    if gamma == 0:
        assert after > 0.7 * before, "GaLore with Muon moves only where the noise is, but for its random first step"
    else:
        assert after < 0.25 * before


def test_too_many_drawn_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.gamma: 2 of 2 layers would always have full rank"):
        Draw(("layers.0", "layers.1"), 2, 5, seed=0)


def test_matrices_take_turns_at_looking() -> None:
    count, period = 7, 20
    turns = [[t for t in range(1, 61) if looks(t, index=i, count=count, period=period)] for i in range(count)]
    assert all(len(turn) == 3 for turn in turns)
    assert len({turn[0] for turn in turns}) == count
    assert all(looks(0, index=i, count=count, period=period) for i in range(count))


def test_names_tell_layers() -> None:
    assert layer_of("model.layers.3.self_attn.q_proj.weight") == "model.layers.3"
    assert layer_of("model.decoder.project_in.weight") == "model.decoder.project_in.weight"


def test_the_rest_is_orthogonal_to_the_view() -> None:
    g = gaussian(10, 16)
    basis = leading_basis(g @ gaussian(16, 6, seed=1), 4)
    rest = subtract_projection_(g.clone(), basis, coordinates(basis, g))
    assert float((basis.T @ rest).abs().max()) < 1e-5
