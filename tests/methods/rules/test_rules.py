from __future__ import annotations

import pytest
import torch

from lowmem.methods.rules.adamw import AdamW
from lowmem.methods.rules.base import Rule, assign_
from lowmem.methods.rules.sgd import Sgd

RULES: list[Rule] = [AdamW(weight_decay=0.1), Sgd(), Sgd(momentum=0.9, weight_decay=0.1)]
BYTES_PER_PARAMETER = {"AdamW": 8, "SGD": 0, "SGD with momentum": 4}


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
    assert nbytes == BYTES_PER_PARAMETER[rule.title] * weight.numel()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.title)
def test_gradient_is_left_alone(rule: Rule) -> None:
    weight, grad = start(), torch.ones(7, 5)
    rule.update_(weight, grad, rule.init(weight), lr=0.1, t=1, rounding_key=0)
    assert torch.equal(grad, torch.ones(7, 5))
    assert not torch.equal(weight, start())


def test_small_updates_of_bf16_weights_survive_in_the_mean() -> None:
    weight = torch.full((300, 300), 1.0, dtype=torch.bfloat16)
    assign_(weight, torch.full((300, 300), 1.0 + 2**-12), 3)  # 1/32 of bf16's spacing above 1
    # Mean 2^-12, standard error sqrt(p (1 - p)) * 2^-7 / 300 = 4.5e-6: five of them.
    assert float(weight.float().mean()) - 1 == pytest.approx(2**-12, abs=2.3e-5)
    assert set(weight.float().unique().tolist()) == {1.0, 1.0 + 2**-7}
