"""Tiny packed models and their folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lowmem.models.packed_folder import Sizes, save_packed
from lowmem.quant.codec import Kind
from lowmem.quant.harp import FitOptions
from lowmem.quant.model import quantize_blocks, quantize_embeddings
from lowmem.quant.quantize import Candidate, QuantizedWeight, QuantizeOptions
from lowmem.quant.store import WeightStore
from tests.models.tiny import tiny_model, tiny_tokenizer


def coded(
    model: Any, folder: Path, *, kind: Kind = "s2", rotation: Candidate = "rht", embeddings: bool = True
) -> dict[str, QuantizedWeight]:
    """The codes of `model`, which holds the decoded weights after."""
    options = QuantizeOptions(kind=kind, candidates=(rotation,), sweeps=0, fit=FitOptions(steps=3))
    generator = torch.Generator().manual_seed(0)
    text = {"input_ids": torch.randint(2, 200, (3, 24), generator=generator)}
    weights: dict[str, QuantizedWeight] = {}
    store = WeightStore(folder, "tiny")
    quantize_blocks(model, [text], lambda name: options, store, on_weight=weights.__setitem__)
    if embeddings:
        quantize_embeddings(model, "int8", store, on_weight=weights.__setitem__)
    return weights


def save_tiny_packed(
    folder: Path, family: str = "qwen3", *, kind: Kind = "s2", rotation: Candidate = "rht", embeddings: bool = True
) -> Sizes:
    """`folder` holds a packed model."""
    model = tiny_model(family)
    weights = coded(
        model, folder.with_name(f"{folder.name}-codes"), kind=kind, rotation=rotation, embeddings=embeddings
    )
    return save_packed(model, weights, tiny_tokenizer(), folder, record={"by": "test"})
