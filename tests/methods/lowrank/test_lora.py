"""What peft's variants of LoRA do to the function at the start, and what is exported at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lowmem.config.method import LoraMethod
from lowmem.errors import ConfigError
from lowmem.methods.build import build_method
from lowmem.methods.lowrank.lora import attach_lora
from lowmem.methods.lowrank.pair import find_pairs
from lowmem.models.loss import ModelLoss
from tests.tiny import lm_batch, run_config, tiny_model

IDS = lm_batch().input_ids
# peft 0.21 reads it while it loads an adapter.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(input_ids=IDS).logits
    return result


VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa-rslora": {"init_lora_weights": "pissa", "use_rslora": True},
}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_start_preserves_the_function(name: str, architecture: str) -> None:
    model = tiny_model(architecture)
    before = logits(model)
    attach_lora(model, LoraMethod(**VARIANTS[name]), seed=0)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_exported_is_the_trained_function_on_the_untouched_base(name: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model = tiny_model()
    method = build_method(run_config(method={"kind": "lora", **VARIANTS[name]}, learning_rate=3e-3), model)
    loss = ModelLoss(model, chunk_tokens=16)
    for step in range(3):
        method.step(loss, [lm_batch(seed=step)], lr=3e-3, step=step)
    method.export(tmp_path)
    trained = logits(model)
    assert not torch.allclose(trained, logits(tiny_model()), atol=1e-3)
    loaded: Any = PeftModel.from_pretrained(tiny_model(), tmp_path)
    torch.testing.assert_close(logits(loaded), trained, rtol=1e-4, atol=1e-5)


def test_pissa_starts_with_the_largest_singular_vectors() -> None:
    untouched, model = tiny_model(), tiny_model()
    attach_lora(model, LoraMethod(lora_r=4, init_lora_weights="pissa"), seed=0)
    pair = next(pair for pair in find_pairs(model) if pair.name.endswith("layers.0.mlp.up_proj"))
    weight = untouched.model.layers[0].mlp.up_proj.weight
    u, s, vh = torch.linalg.svd(weight.detach())
    principal = (u[:, :4] * s[:4]) @ vh[:4]
    torch.testing.assert_close((pair.scale * pair.b @ pair.a).detach(), principal, rtol=1e-4, atol=1e-6)


def test_pissa_of_a_quantized_base_is_refused() -> None:
    model = tiny_model()
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(
        torch.zeros(64, 32, dtype=torch.uint8), requires_grad=False
    )
    with pytest.raises(ConfigError, match=r"pissa decomposes the base's weights, but .*up_proj.* is quantized"):
        attach_lora(model, LoraMethod(init_lora_weights="pissa"), seed=0)


@pytest.mark.parametrize(("rslora", "expected"), [(False, 16 / 4), (True, 16 / 2)])
def test_scale_is_alpha_over_r_or_its_root(rslora: bool, expected: float) -> None:
    model = tiny_model()
    attach_lora(model, LoraMethod(lora_r=4, lora_alpha=16, use_rslora=rslora), seed=0)
    assert {pair.scale for pair in find_pairs(model)} == {expected}


def test_by_default_every_linear_layer_but_the_head_gets_an_adapter() -> None:
    model = tiny_model()
    attach_lora(model, LoraMethod(), seed=0)
    assert {pair.name.rsplit(".", 1)[1] for pair in find_pairs(model)} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    assert len(find_pairs(model)) == 2 * 7
