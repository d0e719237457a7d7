from __future__ import annotations

import pytest
import torch

from lowmem.methods.rules import stored
from lowmem.methods.rules.adamw import AdamW
from lowmem.methods.rules.stored import Stored


def run(rule: Stored | AdamW, steps: int = 30) -> torch.Tensor:
    weight = torch.ones(64, 8)
    state = rule.init(weight)
    for t in range(1, steps + 1):
        grad = torch.randn(64, 8, generator=torch.Generator().manual_seed(t)) + 0.5
        rule.update_(weight, grad, state, lr=1e-2, t=t, rounding_key=t)
    return weight


def test_rows_at_a_time_are_the_whole_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(Stored(AdamW(), elementwise=True))
    monkeypatch.setattr(stored, "SLAB", 100)
    assert torch.equal(run(Stored(AdamW(), elementwise=True)), whole)
    assert torch.equal(whole, run(AdamW()))


def test_state_in_bf16_takes_half_and_stays_close() -> None:
    rule = Stored(AdamW(), torch.bfloat16)
    assert {tensor.dtype for tensor in rule.init(torch.ones(2, 2)).values()} == {torch.bfloat16}
    assert float((run(rule) - run(AdamW())).norm() / (run(AdamW()) - 1).norm()) < 0.02


def test_a_slow_average_in_bf16_does_not_stand_still() -> None:
    """With decay 0.999 every change is below half a step of bf16: to nearest, the average would stay at zero point."""
    rule, weight = Stored(AdamW(betas=(0.9, 0.999)), torch.bfloat16), torch.zeros(256, 4)
    state = rule.init(weight)
    state["exp_avg_sq"].fill_(1.0)
    for t in range(1, 201):
        rule.update_(weight, torch.zeros(256, 4), state, lr=0.0, t=t, rounding_key=t)
    assert float(state["exp_avg_sq"].float().mean()) == pytest.approx(0.999**200, rel=0.01)
