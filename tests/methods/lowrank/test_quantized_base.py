"""Adapters on nf4 and int8 bases of bitsandbytes: every rule trains them, and the base stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lowmem.config.quantization import Int8, Nf4
from lowmem.errors import ConfigError
from lowmem.methods.build import build_method
from lowmem.models.load import load_model
from lowmem.models.loss import ModelLoss
from lowmem.models.source import ModelSource
from tests.tiny import lm_batch, run_config, tiny_model

BASES = [Nf4(), Int8()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from transformers import PreTrainedTokenizerFast

    tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=_words()).save_pretrained(tmp_path)
    return tmp_path


def _words() -> Any:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="b"))


def load(folder: Path, base: Nf4 | Int8) -> Any:
    return load_model(ModelSource(str(folder), dtype="fp32", quantization=base), device=torch.device("cpu")).model


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.kind)
@pytest.mark.parametrize(("kind", "lr"), [("lora", 1e-2), ("lorsum", 0.3), ("lora_muon", 1e-2)])
def test_the_loss_falls_and_the_codes_stay(folder: Path, base: Nf4 | Int8, kind: str, lr: float) -> None:
    model = load(folder, base)
    config = run_config(method={"kind": kind}, quantization=base.model_dump(), learning_rate=lr)
    method, loss = build_method(config, model), ModelLoss(model, chunk_tokens=16)
    codes = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    losses = [method.step(loss, [lm_batch(rows=6)], lr=lr, step=step).loss for step in range(12)]
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(p, codes[name]) for name, p in model.named_parameters() if name in codes)


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.kind)
def test_pissa_is_refused(folder: Path, base: Nf4 | Int8) -> None:
    config = run_config(method={"kind": "lora", "init_lora_weights": "pissa"}, quantization=base.model_dump())
    with pytest.raises(ConfigError, match="pissa decomposes the base's weights"):
        build_method(config, load(folder, base))
