"""The keys of methods that train whole matrices: their own names, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from lowmem.config.load import load_run
from lowmem.config.method import FullMethod, GaloreMethod, GumMethod, LoraMethod
from tests.tiny import run_config

RUN = "model: m\ndataset: d.jsonl\n"


@pytest.mark.parametrize(
    ("text", "overrides", "method"),
    [
        ("method: {kind: gum, rank: 64}", [], GumMethod(rank=64)),
        ("method: gum", ["method.rank=64"], GumMethod(rank=64)),
        ("method: {kind: gum, gamma: 1}", ["method.rank=64"], GumMethod(rank=64, gamma=1)),
        ("", ["method=galore", "method.rank=64"], GaloreMethod(rank=64)),
    ],
)
def test_rank_is_the_projection_s_own_key(tmp_path: Path, text: str, overrides: list[str], method: object) -> None:
    (tmp_path / "run.yaml").write_text(RUN + text)
    loaded = load_run(tmp_path / "run.yaml", overrides)
    assert loaded.config.method == method
    assert loaded.notices == ()


def test_rank_still_means_that_of_the_adapter_for_lora(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN + "method: lora")
    loaded = load_run(tmp_path / "run.yaml", ["method.rank=3"])
    assert loaded.config.method == LoraMethod(lora_r=3)
    assert any("method.rank is read as method.lora_r" in notice for notice in loaded.notices)


def test_kinds_of_clipping_belong_to_updates_inside_backward() -> None:
    assert FullMethod(update="in_backward", clipping="per_layer").clipping == "per_layer"
    with pytest.raises(ValidationError, match="clipping: per_layer belongs to update: in_backward"):
        FullMethod(clipping="per_layer")


def test_gum_refuses_a_second_spectral_rule() -> None:
    with pytest.raises(ValidationError, match="gum has its own rule for matrices, and muon is for nothing else"):
        run_config(method={"kind": "gum"}, optimizer={"kind": "muon"})
    assert run_config(method={"kind": "gum"}, optimizer={"kind": "lion"}).peak_learning_rate == 2e-5
    assert run_config(method={"kind": "galore"}).peak_learning_rate == 8e-5
