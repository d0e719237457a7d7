"""The bed's model at several precisions: quantized once into a folder of codes, decoded to fp32 in memory.

All precisions cost the same time a token here, since all are multiplied in fp32: seconds are therefore a count of
tokens in disguise, and say nothing about how much faster low precision is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from examples.rescue.problems import TRAINED
from lowmem.models.load import load_model
from lowmem.models.source import ModelSource
from lowmem.quant.model import fingerprint, quantize_blocks
from lowmem.quant.quantize import QuantizedWeight, QuantizeOptions, dequantize
from lowmem.quant.store import WeightStore

CALIBRATION_DOCUMENTS, CALIBRATION_TOKENS = 64, 160


@dataclass
class Reasoner:
    """A trained folder. `at` gives it at a precision of the protocol; `store` keeps the codes; `document(index, seed)`
    is such a text as it was trained on."""

    folder: Path
    store: Path
    document: Callable[[int, int], str]

    @cached_property
    def full(self) -> Any:
        return load_model(ModelSource(str(self.folder), dtype="fp32"), device="cpu")

    @property
    def tokenizer(self) -> Any:
        return self.full.tokenizer

    def at(self, precision: dict[str, Any]) -> Any:
        """A model in fp32 whose linears hold what the codes of `precision` decode to; {} = the model as it is.

        Keys are `QuantizeOptions`' and `plane`: "base" reads the first plane of kind nested only.
        """
        model = copy.deepcopy(self.full.model).eval()
        if not precision:
            return model
        options, base = _options(precision)
        codes = self._codes(options)
        for name, weight in codes.items():
            read = replace(weight, packed=weight.packed.base_plane()) if base else weight
            with torch.no_grad():
                model.get_submodule(name).weight.copy_(dequantize(read))
        return model

    def _codes(self, options: QuantizeOptions) -> dict[str, QuantizedWeight]:
        found: dict[str, QuantizedWeight] = {}
        model, batches = copy.deepcopy(self.full.model), self._calibration()
        name = fingerprint(model, batches, lambda linear: options)
        store = WeightStore(self.store / name[:12], name)
        quantize_blocks(model, batches, lambda linear: options, store, on_weight=found.__setitem__)
        return found

    def _calibration(self) -> Sequence[dict[str, Tensor]]:
        """Documents the model was trained on, each cut to one length, so that nothing is padded."""
        rows = []
        index = 0
        while len(rows) < CALIBRATION_DOCUMENTS:
            ids = self.tokenizer(self.document(index, TRAINED))["input_ids"]
            index += 1
            if len(ids) >= CALIBRATION_TOKENS:
                rows.append(ids[:CALIBRATION_TOKENS])
        return [{"input_ids": torch.tensor(rows[start : start + 16])} for start in range(0, len(rows), 16)]


def _options(precision: dict[str, Any]) -> tuple[QuantizeOptions, bool]:
    given = dict(precision)
    base = given.pop("plane", "all") == "base"
    return QuantizeOptions(**{**given, "candidates": tuple(given["candidates"])}), base
