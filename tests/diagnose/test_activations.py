"""Row O1: what the measures say of inputs whose sparsity is known."""

from __future__ import annotations

import pytest
import torch

from lowmem.diagnose.activations import NAMES, by_kind, kind_of, linear_modules, measure_activations, sparsity
from tests.tiny import lm_batch, tiny_model


def means(x: torch.Tensor) -> dict[str, float]:
    return dict(zip(NAMES, (sparsity(x) / len(x)).tolist(), strict=True))


def test_gaussian_inputs_have_a_flatness_of_0_798() -> None:
    found = means(torch.randn(400, 4096, generator=torch.Generator().manual_seed(0)))
    assert found["flatness"] == pytest.approx((2 / torch.pi) ** 0.5, abs=5e-3)
    assert found["tiny"] == pytest.approx(0.00798, abs=5e-4)  # twice the density at zero times 0.01


def test_a_single_entry_is_as_sparse_as_can_be_and_equal_entries_as_flat() -> None:
    one, flat = torch.zeros(3, 64), torch.full((3, 64), -2.0)
    one[:, 5] = torch.tensor([1.0, -3.0, 7.0])
    assert means(one)["flatness"] == pytest.approx(64**-0.5, abs=1e-6)
    assert means(one)["hoyer"] == pytest.approx(1.0, abs=1e-6)
    assert means(one)["tiny"] == pytest.approx(63 / 64)
    assert means(flat)["flatness"] == pytest.approx(1.0, abs=1e-6)
    assert means(flat)["hoyer"] == pytest.approx(0.0, abs=1e-6)
    assert (means(flat)["l1"], means(flat)["l2"], means(flat)["linf"]) == pytest.approx((128.0**2, 256.0, 4.0))


def test_sparsity_does_not_see_the_scale_and_sizes_do() -> None:
    x = torch.randn(20, 32, generator=torch.Generator().manual_seed(1))
    small, large = means(x), means(1000 * x)
    for name in ("flatness", "hoyer", "tiny"):
        assert large[name] == pytest.approx(small[name], rel=1e-5)
    for name in ("l1", "l2", "linf"):
        assert large[name] == pytest.approx(1e6 * small[name], rel=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_every_layer_is_measured_at_real_tokens_alone(architecture: str) -> None:
    model, batch = tiny_model(architecture), lm_batch()
    found = measure_activations(model, [batch])
    assert set(found) == set(linear_modules(model))
    assert not any("lm_head" in name for name in found)
    assert not any(module._forward_pre_hooks for module in model.modules()), "no hook is left behind"
    other = lm_batch()
    assert other.attention_mask is not None
    other.input_ids[other.attention_mask == 0] = 7  # what padding is must not matter
    for name, one in measure_activations(model, [other]).items():
        assert one.l2 == pytest.approx(found[name].l2, rel=1e-5)


def test_layers_at_the_same_place_are_one_kind() -> None:
    assert kind_of("model.layers.3.mlp.down_proj") == "mlp.down_proj"
    found = measure_activations(tiny_model(), [lm_batch()])
    kinds = by_kind(found)
    assert len(kinds) == 7
    layers = [one.flatness for name, one in found.items() if kind_of(name) == "mlp.down_proj"]
    assert kinds["mlp.down_proj"].flatness == pytest.approx(sum(layers) / 2)
