from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from lowmem.config.optimizer import Optimizer
from lowmem.errors import ConfigError
from lowmem.methods.build import build_method
from lowmem.methods.rules.adamw import AdamW
from lowmem.methods.rules.build import build_rules
from lowmem.methods.rules.choice import RuleChoice, embedding_names
from lowmem.methods.rules.lionmuon import LionMuon
from lowmem.methods.rules.muon import Muon
from lowmem.methods.rules.signum import Signum
from lowmem.models.names import trainable_parameters
from tests.tiny import run_config, tiny_model

KINDS = [section.model_fields["kind"].default for section in get_args(get_args(Optimizer)[0])]


def built(**keys: Any) -> RuleChoice:
    return build_rules(TypeAdapter[Any](Optimizer).validate_python(keys), total_updates=30)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_builds_a_rule_with_the_keys_of_its_section(kind: str) -> None:
    rules = built(kind=kind, weight_decay=0.25)
    for shape in ((3, 2), (3,)):
        assert rules("w", torch.zeros(shape)).weight_decay == 0.25  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["softsignum", "softmuon"])
def test_rules_that_soften_must_know_how_long_the_run_is(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"optimizer.kind: {kind} softens .* set max_steps"):
        build_rules(TypeAdapter[Any](Optimizer).validate_python({"kind": kind}))
    with pytest.raises(ValidationError, match=f"{kind} softens towards the end of the run .* set max_steps"):
        run_config(optimizer={"kind": kind})
    assert built(kind=kind).matrices.total_updates == 30  # type: ignore[attr-defined]


def test_keys_reach_the_rule() -> None:
    assert built(kind="signmuon", momentum=0.8, period=7).matrices == LionMuon(betas=(0.8, 0.8), period=7)
    assert built(kind="muon", scale="aspect", others="signum") == RuleChoice(Muon(scale="aspect"), Signum())
    assert built(kind="muon").title == "Muon (AdamW off the matrices)"
    assert built(kind="adamw").title == "AdamW"


@pytest.mark.parametrize("architecture", ["llama", "opt", "gpt2", "qwen3", "bloom"])
def test_spectral_rules_leave_vectors_embeddings_and_heads_to_the_other_rule(architecture: str) -> None:
    model = tiny_model(architecture)
    parameters = trainable_parameters(model)
    rules = RuleChoice(Muon(), AdamW(), embedding_names(model, parameters))
    spectral = {name for name, p in parameters.items() if isinstance(rules(name, p), Muon)}
    tables = ("embed", "wte", "wpe", "lm_head")
    expected = {name for name, p in parameters.items() if p.dim() == 2 and not any(t in name for t in tables)}
    assert spectral == expected
    assert any(p.dim() == 1 for p in parameters.values())
    assert len(spectral) >= 8


def test_lora_factors_are_matrices_also_on_a_wide_layer() -> None:
    config = run_config(method={"kind": "lora"}, optimizer={"kind": "muon"})
    method = build_method(config, tiny_model("llama"))
    slots = {key for key in method.state().tensors if key.startswith("state/")}
    assert {key.rsplit("/", 1)[1] for key in slots} == {"exp_avg"}
    assert len(slots) == len(method.trainable)
    wide = torch.zeros(14336, 8)  # the second factor on the MLP of a model of 8B parameters
    assert built(kind="muon")("model.layers.0.mlp.up_proj.lora_B.weight", wide) == Muon()


def test_state_bytes_of_full_muon_are_four_per_matrix_entry_and_eight_elsewhere() -> None:
    config = run_config(method={"kind": "full"}, optimizer={"kind": "muon"})
    method = build_method(config, tiny_model("qwen3"))
    nbytes = sum(t.nbytes for key, t in method.state().tensors.items() if key.startswith("state/"))
    other = {n for n, p in method.trainable.items() if p.dim() == 1 or "embed" in n or "lm_head" in n}
    assert nbytes == sum((8 if n in other else 4) * p.numel() for n, p in method.trainable.items())
