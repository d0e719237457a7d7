"""The shape table against published parameter counts."""

from __future__ import annotations

import pytest
import torch

from lowmem.models.load import meta_model
from lowmem.models.shapes import known_shape, random_model, shape_names
from lowmem.models.source import ModelSource
from tests.models.tiny import tiny_config

# Parameters as the hub reports them for each safetensors file, tied weights once.
PUBLISHED = {
    "facebook/opt-125m": 125_239_296,
    "facebook/opt-1.3b": 1_315_758_080,
    "facebook/opt-2.7b": 2_651_596_800,
    "facebook/opt-6.7b": 6_658_473_984,
    "facebook/opt-13b": 12_853_473_280,
    "facebook/opt-30b": 29_974_540_288,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    model = meta_model(ModelSource(name))
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_every_shape_of_the_table_is_checked() -> None:
    checked = {type(known_shape(n)).__name__ + str(known_shape(n).hidden_size) for n in PUBLISHED}  # type: ignore[union-attr]
    assert len(PUBLISHED) == len(shape_names())
    assert checked == {type(known_shape(n)).__name__ + str(known_shape(n).hidden_size) for n in shape_names()}  # type: ignore[union-attr]


def test_names_match_in_any_case_and_only_under_their_own_organisation() -> None:
    assert known_shape("OPT-125M") is not None
    assert known_shape("Facebook/OPT-125m") is not None
    assert known_shape("somebody/opt-125m") is None
    assert known_shape("opt-350m") is None


def test_random_weights_depend_on_the_seed_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (random_model(tiny_config("llama"), seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_an_unknown_shape_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'opt-350m' is not a known shape; known: opt-125m, opt-1.3b"):
        random_model("opt-350m")
