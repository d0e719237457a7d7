"""Models and tokenizers by name: complete, in eval mode, and never in memory twice."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from lowmem.config.quantization import NoQuantization
from lowmem.errors import ConfigError, FormatError
from lowmem.events import Event, Sink
from lowmem.models.packed_folder import is_packed
from lowmem.models.packed_lora import load_adapter
from lowmem.models.packed_quantizer import packed_headers, put_packed_layers
from lowmem.models.resolve import HubModel, Location, ModelFolder, RunFolder, resolve
from lowmem.models.scales import load_scales
from lowmem.models.shapes import known_shape
from lowmem.models.source import ModelSource
from lowmem.models.weights import attention_refused_clearly, check_safetensors, read_config, read_model, read_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

AdapterUse = Literal["merge", "keep"]


@dataclass(frozen=True)
class LoadedModel:
    """A causal LM in eval mode with `use_cache` off, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    folder: Path | None
    """Where it was read from; None for a hub model."""


def ignore_event(event: Event) -> None:
    """The sink of a caller who does not listen."""


def load_model(
    source: ModelSource,
    *,
    device: torch.device,
    adapter: AdapterUse = "merge",
    sink: Sink = ignore_event,
) -> LoadedModel:
    """The model of `source` on `device`. Tied weights are one tensor, seen once by `named_parameters()`.

    A run folder that holds an adapter gives its base with the adapter folded in ("merge": an ordinary model
    that can be trained on) or beside it ("keep": exactly what was trained, and the only way for a quantized
    base). Raises `ConfigError` for names that lead nowhere and `FormatError` naming the file that is damaged.
    """
    location = resolve(source.model)
    model = _model(source, location, device, adapter, sink)
    model.config.use_cache = False
    folder = None if isinstance(location, HubModel) else location.folder
    return LoadedModel(model.eval(), load_tokenizer(source), source.model, folder)


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer of `source`, with the chat template of `source` or of the run if either names one.

    A run folder's own tokenizer wins over that of its base. Without a padding token, end of text pads.
    """
    location = resolve(source.model)
    template = source.chat_template
    if isinstance(location, RunFolder):
        template = template or location.config.chat_template
        if not (location.trained / "tokenizer_config.json").is_file():
            return load_tokenizer(dataclasses.replace(_base_of(source, location), chat_template=template))
        location = ModelFolder(location.trained)
    tokenizer = read_tokenizer(source, location)
    if template is not None:
        tokenizer.chat_template = template
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(source: ModelSource) -> PretrainedConfig:
    """The architecture of `source`; no weights are touched. Raises as `load_model` does."""
    location = resolve(source.model)
    if not isinstance(location, RunFolder):
        return read_config(source, location)
    if location.is_adapter or location.is_scales:
        return load_config(_base_of(source, location))
    return read_config(source, ModelFolder(location.trained))


def meta_model(source: ModelSource) -> PreTrainedModel:
    """The model of `source` on the meta device: shapes and dtype, no memory, quantization not applied.

    Models of the shape table need neither the hub nor a conversion.
    """
    from transformers import AutoModelForCausalLM

    known = known_shape(source.model) if source.revision is None and not Path(source.model).exists() else None
    with torch.device("meta"), attention_refused_clearly(source):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            load_config(source) if known is None else known,
            dtype=source.torch_dtype,
            attn_implementation=source.attn_implementation,
            trust_remote_code=source.trust_remote_code,
        )
        if (packed := packed_headers(model.config)) is not None:
            put_packed_layers(model, packed)
    model.config.use_cache = False
    return model.eval()


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token to pad with: the tokenizer's own, else 0 (padding is masked, so any id in range serves)."""
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def _model(
    source: ModelSource, location: Location, device: torch.device, adapter: AdapterUse, sink: Sink
) -> PreTrainedModel:
    if not isinstance(location, RunFolder):
        return read_model(source, location, device=device, sink=sink)
    if location.is_scales:
        return _with_scales(source, location, device, sink)
    if not location.is_adapter:
        return read_model(source, ModelFolder(location.trained), device=device, sink=sink)
    if adapter == "merge" and not isinstance(source.quantization, NoQuantization):
        raise ConfigError(
            f"model: {source.model} is an adapter and cannot be folded into a {source.quantization.kind} "
            "base; merge the run into a folder first (lowmem merge), or use quantization: none"
        )
    base = load_model(_base_of(source, location), device=device, sink=sink).model
    return _with_adapter(base, location.trained, merge=adapter == "merge")


def _with_scales(source: ModelSource, run: RunFolder, device: torch.device, sink: Sink) -> PreTrainedModel:
    """The run's base, quantized as it was for the run, with the scales that were trained."""
    trained = run.config.quantization
    if source.quantization not in (NoQuantization(), trained):
        raise ConfigError(
            f"model: {source.model} holds the scales of a {trained.kind} base, and quantization.kind: "
            f"{source.quantization.kind} has others; leave quantization out"
        )
    base = load_model(dataclasses.replace(_base_of(source, run), quantization=trained), device=device, sink=sink).model
    load_scales(base, run.trained)
    return base


def _base_of(source: ModelSource, run: RunFolder) -> ModelSource:
    """What the run was trained from, in the form that `source` asks for."""
    return dataclasses.replace(
        source,
        model=run.config.model,
        revision=run.config.revision,
        trust_remote_code=source.trust_remote_code or run.config.trust_remote_code,
    )


def _with_adapter(base: PreTrainedModel, folder: Path, *, merge: bool) -> PreTrainedModel:
    check_safetensors(folder)
    if merge and is_packed(base):
        raise ConfigError(
            f"the adapter in {folder} lies on packed weights, which hold no sums: it cannot be folded in; use "
            "the run folder as it is, with the adapter beside the weights"
        )
    try:
        wrapped = load_adapter(base, folder)
    except (RuntimeError, ValueError) as error:
        raise FormatError(f"the adapter in {folder} does not fit its base model: {error}") from error
    # get_base_model() still computes with the adapter: peft put its layers inside the base.
    adapted: Any = wrapped
    model: PreTrainedModel = adapted.merge_and_unload() if merge else adapted.get_base_model()
    return model
