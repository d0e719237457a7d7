from __future__ import annotations

from typing import Literal

import pytest
import torch

from lowmem.methods.rules.base import Rule
from lowmem.methods.rules.lion import Lion
from lowmem.methods.rules.lionmuon import LionMuon
from lowmem.methods.rules.muon import Muon
from lowmem.methods.rules.orthogonal import msign
from lowmem.methods.rules.signum import Signum


def grad(t: int, shape: tuple[int, int] = (24, 8)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(t))


def walk(rule: Rule, *, lr: float, steps: int = 6) -> torch.Tensor:
    weight = grad(0)
    state = rule.init(weight)
    for t in range(1, steps + 1):
        rule.update_(weight, grad(t), state, lr=lr, t=t, rounding_key=t)
    return weight


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(("scale", "theirs"), [("rms", "match_rms_adamw"), ("aspect", "original")])
def test_muon_equals_torchs_muon_up_to_its_bf16_iterations(
    scale: Literal["rms", "aspect"], theirs: str, nesterov: bool
) -> None:
    parameter = torch.nn.Parameter(grad(0))
    oracle = torch.optim.Muon([parameter], lr=0.01, weight_decay=0.1, nesterov=nesterov, adjust_lr_fn=theirs)
    for t in range(1, 7):
        parameter.grad = grad(t)
        oracle.step()
    moved = parameter.detach() - grad(0)
    ours = walk(Muon(scale=scale, nesterov=nesterov, weight_decay=0.1), lr=0.01) - grad(0)
    assert float((ours - moved).norm()) < 0.02 * float(moved.norm())


def test_lionmuon_without_a_period_is_lion_at_the_sign_rate() -> None:
    rule = LionMuon(period=None, sign_lr_ratio=0.1, weight_decay=0.1)
    torch.testing.assert_close(walk(rule, lr=0.1), walk(Lion(weight_decay=0.1), lr=0.01), rtol=1e-6, atol=1e-6)


def test_signmuon_without_a_period_is_signum() -> None:
    rule = LionMuon(betas=(0.9, 0.9), period=None, sign_lr_ratio=0.1)
    torch.testing.assert_close(walk(rule, lr=0.1), walk(Signum(momentum=0.9), lr=0.01), rtol=1e-6, atol=1e-6)


def test_lionmuon_of_period_one_and_one_beta_is_muon_without_nesterov() -> None:
    rule = LionMuon(betas=(0.9, 0.9), period=1, weight_decay=0.1)
    twin = Muon(momentum=0.9, nesterov=False, weight_decay=0.1)
    torch.testing.assert_close(walk(rule, lr=0.01), walk(twin, lr=0.01), rtol=1e-6, atol=1e-6)


def test_lionmuon_of_period_one_takes_the_msign_of_lions_direction() -> None:
    rule, weight = LionMuon(betas=(0.9, 0.99), period=1, scale="operator"), torch.zeros(8, 8)
    state = {"exp_avg": grad(1, (8, 8))}
    rule.update_(weight, grad(2, (8, 8)), state, lr=1.0, t=1, rounding_key=0)
    torch.testing.assert_close(weight, -msign(0.9 * grad(1, (8, 8)) + 0.1 * grad(2, (8, 8))))
    torch.testing.assert_close(state["exp_avg"], 0.99 * grad(1, (8, 8)) + 0.01 * grad(2, (8, 8)))


def test_lionmuon_alternates_and_begins_with_a_spectral_step() -> None:
    rule, weight = LionMuon(period=3, sign_lr_ratio=0.5), torch.zeros(24, 8)
    state, signs = rule.init(weight), []
    for t in range(1, 8):
        before = weight.clone()
        rule.update_(weight, grad(t), state, lr=1.0, t=t, rounding_key=t)
        signs.append(bool(((weight - before).abs() - 0.5).abs().max() < 1e-5))
    assert signs == [False, True, True, False, True, True, False]
