"""Row O2's norms, and the change of a weight whatever was trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lowmem.diagnose.activations import Sparsity, linear_modules
from lowmem.diagnose.updates import bounds, changes, largest_singular_value, measure_updates, update_norms
from lowmem.methods.build import build_method
from lowmem.models.loss import ModelLoss
from tests.tiny import lm_batch, run_config, tiny_model


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_norms_are_torchs() -> None:
    d = random(7, 5)
    found = update_norms(d)
    assert found.max_entry == pytest.approx(float(d.abs().max()))
    assert found.spectral == pytest.approx(float(torch.linalg.matrix_norm(d, 2)), rel=1e-6)
    assert found.frobenius == pytest.approx(float(torch.linalg.matrix_norm(d)))
    assert found.max_row == pytest.approx(float(torch.linalg.matrix_norm(d, torch.inf)))
    assert found.max_column == pytest.approx(float(torch.linalg.matrix_norm(d, 1)))
    assert found.stable_rank == pytest.approx((found.frobenius / found.spectral) ** 2)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e20])
def test_the_power_method_finds_the_largest_singular_value_at_any_scale(scale: float) -> None:
    d = random(40, 60).float() * scale
    assert largest_singular_value(d) == pytest.approx(float(torch.linalg.matrix_norm(d, 2)), rel=5e-3)
    assert largest_singular_value(torch.zeros(3, 4)) == 0.0


def trained(architecture: str, method: dict[str, Any], *, lr: float) -> Any:
    """A model after two steps, as a run would use it: adapters beside their weights."""
    model = tiny_model(architecture)
    built = build_method(run_config(method=method), model)
    for step in range(2):
        built.step(ModelLoss(model), [lm_batch()], lr=lr, step=step)
    return model


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "method",
    [{"kind": "full"}, {"kind": "lora", "lora_r": 4}, {"kind": "lora", "lora_r": 4, "use_dora": True}],
    ids=["full", "lora", "dora"],
)
def test_the_change_is_the_difference_of_what_the_layers_do(architecture: str, method: dict[str, Any]) -> None:
    base, tuned = tiny_model(architecture), trained(architecture, method, lr=1e-2)
    modules = dict(tuned.named_modules())
    seen = 0
    with torch.no_grad():
        for name, change in changes(base, tuned):
            before = linear_modules(base)[name]
            x = torch.randn(3, change.shape[1], generator=torch.Generator().manual_seed(0))
            done = modules[name](x) - before(x)
            if isinstance(method.get("lora_r"), int):
                torch.testing.assert_close(x @ change.T, done, rtol=1e-3, atol=1e-5)
            else:  # full finetuning moves biases too
                bias = getattr(modules[name], "bias", None)
                moved = 0.0 if bias is None else bias - before.bias
                torch.testing.assert_close(x @ change.T + moved, done, rtol=1e-3, atol=1e-5)
            seen += bool(change.any())
    assert seen > 0


def test_at_rate_zero_nothing_changes() -> None:
    """Row O3's first half, in the weights."""
    for method in ({"kind": "full"}, {"kind": "lora", "lora_r": 4}):
        norms = measure_updates(tiny_model(), trained("llama", method, lr=0.0))
        assert {value for one in norms.values() for value in vars(one).values()} == {0.0}


def test_a_bound_is_the_squared_norm_times_the_squared_size_of_the_inputs() -> None:
    norms = {"max_entry": 2.0, "spectral": 3.0, "max_row": 5.0, "max_column": 7.0}
    size = Sparsity(0.5, 0.5, 0.0, l1=10.0, l2=100.0, linf=1000.0)
    found = bounds({"a": norms, "b": norms, "unmeasured": norms}, {"a": size, "b": size})
    assert found == {"max_entry": 80.0, "spectral": 1800.0, "max_row": 50000.0, "max_column": 980.0}
