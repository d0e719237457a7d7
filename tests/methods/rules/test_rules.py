from __future__ import annotations

import pytest
import torch

from lowmem.methods.rules.adafactor import Adafactor
from lowmem.methods.rules.adamw import AdamW
from lowmem.methods.rules.base import Rule, assign_
from lowmem.methods.rules.lion import Lion
from lowmem.methods.rules.lionmuon import LionMuon
from lowmem.methods.rules.muon import Muon
from lowmem.methods.rules.normuon import NorMuon
from lowmem.methods.rules.rowmax import RowMax
from lowmem.methods.rules.sgd import Sgd
from lowmem.methods.rules.signum import Signum
from lowmem.methods.rules.softmuon import SoftMuon
from lowmem.methods.rules.softsignum import SoftSignum
from lowmem.methods.rules.stosign import StoSign

RULES: list[Rule] = [
    AdamW(weight_decay=0.1),
    Sgd(),
    Sgd(momentum=0.9, weight_decay=0.1),
    Lion(weight_decay=0.1),
    Signum(weight_decay=0.1),
    Signum(momentum=0.0),
    StoSign(weight_decay=0.1),
    RowMax(weight_decay=0.1),
    RowMax(side="column"),
    Muon(weight_decay=0.1),
    LionMuon(weight_decay=0.1),
    LionMuon(betas=(0.9, 0.9), weight_decay=0.1),
    NorMuon(weight_decay=0.1),
    SoftSignum(total_updates=600, weight_decay=0.1),
    SoftMuon(total_updates=600, weight_decay=0.1),
    Adafactor(weight_decay=0.1),
]
BYTES_PER_PARAMETER = {
    "AdamW": 8,
    "SGD": 0,
    "SGD with momentum": 4,
    "Lion": 4,
    "Signum": 4,
    "SignSGD": 0,
    "StoSignSGD": 8,
    "RowMax": 4,
    "ColumnMax": 4,
    "Muon": 4,
    "LionMuon": 4,
    "SignMuon": 4,
    "SoftSignum": 4,
    "SoftMuon": 4,
    "NorMuon": 4,
    "Adafactor": 0,
}
BYTES_PER_ROW = {"NorMuon": 4, "Adafactor": 4}
BYTES_PER_COLUMN = {"Adafactor": 4}
BYTES_PER_TENSOR = {"SoftSignum": 8, "SoftMuon": 8}


def walk(rule: Rule, weight: torch.Tensor, steps: int = 10) -> torch.Tensor:
    state = rule.init(weight)
    for t in range(1, steps + 1):
        grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(t))
        rule.update_(weight, grad, state, lr=0.01, t=t, rounding_key=t)
    return weight


def start() -> torch.Tensor:
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("rule", "oracle"),
    [
        (AdamW(weight_decay=0.1), lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1)),
        (
            AdamW(betas=(0.8, 0.95), eps=1e-6),
            lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0),
        ),
        (Sgd(), lambda p: torch.optim.SGD(p, lr=0.01)),
        (Sgd(momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
    ],
)
def test_rule_equals_torchs_optimizer(rule: Rule, oracle: object) -> None:
    theirs = torch.nn.Parameter(start())
    optimizer = oracle([theirs])  # type: ignore[operator]
    for t in range(1, 11):
        theirs.grad = torch.randn(7, 5, generator=torch.Generator().manual_seed(t))
        optimizer.step()
    torch.testing.assert_close(walk(rule, start()), theirs.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.title)
def test_state_bytes_equal_the_formula(rule: Rule) -> None:
    weight = torch.zeros(13, 11, dtype=torch.bfloat16)
    nbytes = sum(t.nbytes for t in rule.init(weight).values())
    rows, columns, title = 13, 11, rule.title
    expected = BYTES_PER_PARAMETER[title] * rows * columns + BYTES_PER_TENSOR.get(title, 0)
    expected += BYTES_PER_ROW.get(title, 0) * rows + BYTES_PER_COLUMN.get(title, 0) * columns
    assert nbytes == expected


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.title)
def test_gradient_is_left_alone(rule: Rule) -> None:
    weight, grad = start(), torch.ones(7, 5)
    rule.update_(weight, grad, rule.init(weight), lr=0.1, t=1, rounding_key=0)
    assert torch.equal(grad, torch.ones(7, 5))
    assert not torch.equal(weight, start())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.title)
def test_state_keeps_its_dtype_and_bf16_weights_follow_fp32_weights(rule: Rule) -> None:
    weight = start().bfloat16()
    state = rule.init(weight)
    for t in range(1, 4):
        grad = torch.randn(7, 5, generator=torch.Generator().manual_seed(t)).bfloat16()
        rule.update_(weight, grad, state, lr=0.01, t=t, rounding_key=t)
    assert weight.dtype == torch.bfloat16
    assert {slot.dtype for slot in state.values()} <= {torch.float32}
    torch.testing.assert_close(weight.float(), walk(rule, start(), steps=3), rtol=0.03, atol=0.03)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.title)
def test_distance_to_a_target_shrinks(rule: Rule) -> None:
    weight, target = torch.zeros(7, 5), start()
    state = rule.init(weight)
    for t in range(1, 601):
        rule.update_(weight, weight - target, state, lr=0.02, t=t, rounding_key=t)
    assert float((weight - target).norm()) < 0.5 * float(target.norm())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.title)
def test_weight_decay_acts_on_the_weights_by_the_learning_rate(rule: Rule) -> None:
    weight = start()
    rule.update_(weight, torch.zeros(7, 5), rule.init(weight), lr=0.5, t=1, rounding_key=0)
    torch.testing.assert_close(weight, start() * (1 - 0.5 * rule.weight_decay))  # type: ignore[attr-defined]


def test_lion_takes_the_sign_of_the_interpolation_and_then_moves_its_momentum() -> None:
    weight, state = torch.zeros(3), {"exp_avg": torch.tensor([1.0, 1.0, -1.0])}
    grad = torch.tensor([-0.5, -2.0, 1.0])  # interpolated with 1/2: 0.25, -0.5, 0
    Lion(betas=(0.5, 0.75)).update_(weight, grad, state, lr=1.0, t=1, rounding_key=0)
    assert weight.tolist() == [-1.0, 1.0, 0.0]
    assert state["exp_avg"].tolist() == [0.625, 0.25, -0.5]


def test_signum_without_momentum_is_the_sign_of_the_gradient() -> None:
    grad = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    weight = torch.zeros(7, 5)
    Signum(momentum=0.0).update_(weight, grad, {}, lr=1.0, t=1, rounding_key=0)
    assert torch.equal(weight, -grad.sign())


def test_small_updates_of_bf16_weights_survive_in_the_mean() -> None:
    weight = torch.full((300, 300), 1.0, dtype=torch.bfloat16)
    assign_(weight, torch.full((300, 300), 1.0 + 2**-12), 3)  # 1/32 of bf16's spacing above 1
    # Mean 2^-12, standard error sqrt(p (1 - p)) * 2^-7 / 300 = 4.5e-6: five of them.
    assert float(weight.float().mean()) - 1 == pytest.approx(2**-12, abs=2.3e-5)
    assert set(weight.float().unique().tolist()) == {1.0, 1.0 + 2**-7}
