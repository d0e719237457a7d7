"""What is to be quantized, checked before anything large is read: the model, the text, and where the result goes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lowmem.config.dataset import Dataset
from lowmem.config.quantization import NoQuantization
from lowmem.config.quantize import QuantizeConfig
from lowmem.config.run import RunConfig
from lowmem.data.calibration import Split, Text, openings, split, texts
from lowmem.data.dataset import open_dataset
from lowmem.errors import ConfigError
from lowmem.events import Sink
from lowmem.generate.tokens import Prompt
from lowmem.jobs.chat_form import chat_form, message_ids
from lowmem.models.load import load_config, meta_model
from lowmem.models.resolve import HubModel, RunFolder, resolve
from lowmem.models.source import ModelSource, pick_device
from lowmem.quant.codec import FORMAT_VERSION
from lowmem.quant.format import digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RECORD = "quantize.json"
MAX_LENGTH = 512
GATE_TOKENS = 512
"""Tokens whose logits are alive at once while the gate reads."""
NOT_IN_THE_CODES = frozenset({"model", "output", "memory_budget", "num_threads", "gate", "recover", "eval_dataset"})
"""Keys that the coded weights do not depend on."""


@dataclass(frozen=True)
class Asked:
    """One request, resolved."""

    config: QuantizeConfig
    source: ModelSource
    run: RunConfig | None
    output: Path
    datasets: tuple[Dataset, ...]
    eval_datasets: tuple[Dataset, ...]
    device: torch.device

    @property
    def max_length(self) -> int:
        run = MAX_LENGTH if self.run is None else self.run.max_length
        return self.config.calibration.max_length or run

    @property
    def stored_dtype(self) -> torch.dtype:
        """The number format of what is not coded: the checkpoint's own."""
        if self.run is not None:
            return ModelSource.from_config(self.run).torch_dtype
        own = load_config(self.source).dtype
        return own if isinstance(own, torch.dtype) else self.source.torch_dtype


@dataclass(frozen=True)
class Material:
    """The text that calibrates, the text that judges, and the prompts that are answered."""

    calibration: list[Text]
    sensitivity: list[Text]
    gate: list[Text]
    prompts: list[Prompt]

    @property
    def tokens(self) -> int:
        return sum(text.input_ids.numel() for text in self.calibration)


def ask(config: QuantizeConfig) -> Asked:
    """The request that `config` is. Raises `ConfigError` for what cannot be quantized, each by its reason."""
    location = resolve(config.model)
    run = location.config if isinstance(location, RunFolder) else None
    device = pick_device(config.device)
    source = ModelSource(config.model) if run is None else ModelSource.from_config(run)
    source = dataclasses.replace(
        source,
        model=config.model,
        dtype=config.dtype or ("bf16" if device.type == "cuda" else "fp32"),
        trust_remote_code=config.trust_remote_code or source.trust_remote_code,
    )
    if run is not None and not isinstance(run.quantization, NoQuantization):
        raise ConfigError(
            f"quantize: {config.model} was trained on a {run.quantization.kind} base; `lowmem merge` folds it into the "
            "full base, then quantize the result"
        )
    refuse_quantized(source)
    datasets = config.dataset or (run.dataset if run is not None else ())
    if not datasets:
        raise ConfigError(
            f"quantize: {config.model} is no run, so calibration text has to be named: --dataset FILE (a few hundred "
            "rows like those it will be used on), or a hub id, or a procedural family"
        )
    held_out = config.eval_dataset or (run.eval_dataset if run is not None and not config.dataset else ())
    if config.recover.steps and not held_out:
        raise ConfigError(
            "quantize: recovery trains on all of dataset, so the result has to be judged by other text; name it with "
            "eval_dataset"
        )
    folder = None if isinstance(location, HubModel) else location.folder
    return Asked(config, source, run, _output(config, folder), tuple(datasets), tuple(held_out), device)


def refuse_quantized(source: ModelSource) -> None:
    """Raises `ConfigError` when the model's weights are codes already."""
    known: Any = getattr(load_config(source), "quantization_config", None)
    if known is None:
        return
    method = known.get("quant_method") if isinstance(known, dict) else getattr(known, "quant_method", None)
    raise ConfigError(
        f"quantize: {source.model} is quantized already ({method}); quantize the model it was made from, or export it "
        "first (lowmem export --to hf) if that is gone"
    )


def refuse_uncoded(source: ModelSource, skip: Sequence[str]) -> None:
    """Raises `ConfigError` where most of a block would stay as it is: experts that are one tensor of three dimensions.

    Looks at the model without its weights.
    """
    model = meta_model(source)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 3 and "conv" not in name and not any(part in name for part in skip):
            raise ConfigError(
                f"quantize: {name} holds its experts in one tensor {tuple(parameter.shape)}; only linear layers are "
                f"coded, so most of this mixture of experts would stay as it is. To code the rest all the same, add "
                f"{name.rpartition('.')[2]} to skip"
            )


def material(asked: Asked, tokenizer: PreTrainedTokenizerBase, *, model_type: str, sink: Sink) -> Material:
    """All text, tokenized. Raises `DataError` for data that cannot be read, `ConfigError` where there is too little."""
    config = asked.config
    read = partial(open_dataset, tokenizer=tokenizer, max_length=asked.max_length, model_type=model_type)
    opened = [read(section, sink=sink) for section in asked.datasets]
    judging = [read(section, sink=sink) for section in asked.eval_datasets]
    found = split(opened, judging, tokens=config.calibration.tokens, judged=config.gate.tokens, seed=config.seed)
    size = config.calibration.batch_size
    return Material(
        texts(found.calibration, size=size),
        texts(_first(found, config.calibration.sensitivity_tokens), size=size),
        texts(found.held_out, size=size, most_tokens=GATE_TOKENS),
        _prompts(asked, tokenizer, found),
    )


def request_key(model: nn.Module, asked: Asked, calibration: Sequence[Text]) -> str:
    """sha256 of all that the coded weights depend on: every weight, the calibration text, and the options."""
    options = asked.config.model_dump(mode="json", exclude=set(NOT_IN_THE_CODES))
    parts = [
        FORMAT_VERSION,
        options,
        {name: digest(tensor) for name, tensor in model.state_dict().items()},
        [{name: digest(tensor) for name, tensor in text.inputs.items()} for text in calibration],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _first(found: Split, tokens: int) -> list[Any]:
    chosen = []
    for example in found.calibration:
        if tokens <= 0:
            break
        chosen.append(example)
        tokens -= example.tokens
    return chosen


def _prompts(asked: Asked, tokenizer: PreTrainedTokenizerBase, found: Split) -> list[Prompt]:
    gate = asked.config.gate
    form = chat_form(tokenizer, asked.run)
    if gate.prompts and form is not None:
        return [tuple(message_ids(tokenizer, [{"role": "user", "content": text}], form)) for text in gate.prompts]
    return list(gate.prompts) or list(openings(found.held_out, gate.prompt_count))


def _output(config: QuantizeConfig, folder: Path | None) -> Path:
    """The folder of the result: as asked, else named after the model and the bits."""
    if config.output is not None:
        return Path(config.output)
    given = Path(config.model).expanduser()
    if folder is not None and given.is_dir():
        return given.resolve().with_name(f"{given.resolve().name}-{config.label}")
    return Path(f"{config.model.rpartition('/')[2]}-{config.label}")
