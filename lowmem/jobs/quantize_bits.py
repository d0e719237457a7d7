"""How every linear layer of a model is coded: the same for all, or bits per layer by what each turned out to bear."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lowmem.config.quantize import QuantizeConfig
from lowmem.data.calibration import Text
from lowmem.errors import ConfigError
from lowmem.jobs.folder import write_atomically
from lowmem.quant.allocation import Limits, Shapes, choose, codes_bytes, require_possible, shapes_of
from lowmem.quant.codec import Kind
from lowmem.quant.harp import FitOptions
from lowmem.quant.model import block_linears, tables_of
from lowmem.quant.quantize import QuantizeOptions
from lowmem.quant.sensitivity import measure_sensitivity
from lowmem.units import parse_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SENSITIVITY = "sensitivity.json"
AT_ONCE = 8
"""Layers whose sensitivities are measured between two looks at the disk: a killed run loses at most these."""


@dataclass(frozen=True)
class Options:
    """Options by layer; layers that are not in it stay as they are."""

    by_name: Mapping[str, QuantizeOptions]

    def of(self, name: str) -> QuantizeOptions | None:
        return self.by_name.get(name)


def options_of(config: QuantizeConfig, kind: Kind) -> QuantizeOptions:
    """What every layer of this kind gets."""
    return QuantizeOptions(
        kind=kind,
        candidates=config.candidates,
        error_feedback=config.feedback == "ldlq",
        sweeps=config.sweeps if config.feedback == "ldlq" else 0,
        group_size=config.group_size,
        seed=config.seed,
        fit=FitOptions(steps=config.rotation_steps),
    )


def coded_names(model: PreTrainedModel, config: QuantizeConfig) -> list[str]:
    """Linear layers that are coded. Raises `ConfigError` for a `skip` that names nothing, or everything."""
    names = list(block_linears(model))
    everything = [*names, *(name for name, _ in model.named_parameters())]
    for pattern in config.skip:
        if not any(_matches(name, pattern) for name in everything):
            raise ConfigError(f"skip: {pattern!r} is no layer of this model; they are called like {names[0]}")
    kept = [name for name in names if not any(_matches(name, pattern) for pattern in config.skip)]
    if not kept:
        raise ConfigError("skip: every linear layer is left out, so nothing would be quantized")
    return kept


def request_shapes(model: PreTrainedModel, config: QuantizeConfig, stored: torch.dtype) -> Shapes:
    """The model's shapes, as far as its size after quantizing goes."""
    tables = [] if config.embeddings == 16 else [name for name, _ in tables_of(model)]
    return shapes_of(model, coded_names(model, config), tables, itemsize=stored.itemsize)


def require_size(model: PreTrainedModel, config: QuantizeConfig, stored: torch.dtype) -> None:
    """Raises `BudgetError` when `size` or `average_bits` cannot be met, before any layer is measured."""
    if config.is_mixed:
        require_possible(request_shapes(model, config, stored), config.codecs, _limits(config))


def choose_options(
    model: PreTrainedModel, texts: Sequence[Text], config: QuantizeConfig, work: Path, stored: torch.dtype
) -> Options:
    """The options of every coded layer; sensitivities, where they are needed, are measured once and kept in `work`."""
    names = coded_names(model, config)
    if not config.is_mixed:
        options = options_of(config, config.codecs[0])
        return Options(dict.fromkeys(names, options))
    require_size(model, config, stored)
    sensitivity = _sensitivities(model, texts, names, config.seed, work / SENSITIVITY)
    kinds = choose(request_shapes(model, config, stored), sensitivity, config.codecs, _limits(config))
    return Options({name: options_of(config, kinds[name]) for name in names})


def coded_bytes(model: PreTrainedModel, config: QuantizeConfig, stored: torch.dtype) -> int:
    """Bytes of all codes of the result, at most."""
    return codes_bytes(request_shapes(model, config, stored), config.codecs, _limits(config))


def _limits(config: QuantizeConfig) -> Limits:
    return Limits(
        candidates=config.candidates,
        group_size=config.group_size,
        embeddings=config.embeddings,
        size=None if config.size is None else parse_bytes(config.size),
        average_bits=config.average_bits,
    )


def _sensitivities(
    model: PreTrainedModel, texts: Sequence[Text], names: Sequence[str], seed: int, file: Path
) -> dict[str, float]:
    """By layer; what `file` holds already is not measured again."""
    known: dict[str, float] = json.loads(file.read_text()) if file.is_file() else {}
    batches = [{name: t.to(model.device) for name, t in text.inputs.items()} for text in texts]
    missing = [name for name in names if name not in known]
    for start in range(0, len(missing), AT_ONCE):
        known |= measure_sensitivity(model, batches, missing[start : start + AT_ONCE], seed=seed)
        write_atomically(file, json.dumps(known))
    return known


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"*{pattern}*")
