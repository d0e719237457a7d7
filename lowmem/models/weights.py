"""One transformers folder or hub model, read and checked: config, weights, tokenizer.

transformers fills missing or misshaped weights with random numbers and goes on; here that is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lowmem.config.quantization import NoQuantization
from lowmem.errors import ConfigError, FormatError
from lowmem.events import Notice, Sink
from lowmem.models.packed_quantizer import packed_headers, register
from lowmem.models.quantized import quantization_request
from lowmem.models.quiet import quiet_transformers
from lowmem.models.resolve import HubModel, ModelFolder, what_works
from lowmem.models.source import ModelSource

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Place = ModelFolder | HubModel


def read_config(source: ModelSource, place: Place) -> PretrainedConfig:
    """The architecture at `place`. Raises `ConfigError` where it is no causal language model."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    with quiet_transformers():
        try:
            config: PretrainedConfig = AutoConfig.from_pretrained(**_address(source, place))
        except (OSError, ValueError) as error:
            raise _unusable(place, error) from error
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not source.trust_remote_code:
        raise ConfigError(
            f"model: {source.model} is of type {config.model_type!r}, which is not a causal language model; "
            "use a decoder such as OPT, Llama, Qwen3 or GPT-2, or trust_remote_code: true if it brings code"
        )
    return config


def read_model(source: ModelSource, place: Place, *, device: torch.device, sink: Sink) -> PreTrainedModel:
    """The weights at `place`, put on `device` tensor by tensor, in the dtype and quantization of `source`."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if source.trust_remote_code:
        sink(Notice(f"trust_remote_code is on: Python code that comes with {source.model} is being run"))
    config = read_config(source, place)
    if isinstance(place, ModelFolder):
        check_safetensors(place.folder)
    if packed_headers(config) is not None:
        register()
        if not isinstance(source.quantization, NoQuantization):
            raise ConfigError(
                f"quantization.kind: {source.model} is packed already by lowmem quantize; leave quantization out"
            )
    with quiet_transformers(), attention_refused_clearly(source):
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                **_address(source, place),
                config=config,
                dtype=source.torch_dtype,
                attn_implementation=source.attn_implementation,
                quantization_config=quantization_request(source.quantization, source.torch_dtype),
                device_map={"": device},
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except (OSError, SafetensorError) as error:
            raise _unusable(place, error) from error
    _check_complete(_name_of(place), info)
    loaded: PreTrainedModel = model
    return loaded


def read_tokenizer(source: ModelSource, place: Place) -> PreTrainedTokenizerBase:
    """The tokenizer at `place`, as it is there."""
    from transformers import AutoTokenizer

    with quiet_transformers():
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**_address(source, place))
        except (OSError, ValueError) as error:
            if isinstance(place, HubModel):
                raise _unusable(place, error) from error
            raise FormatError(f"{place.folder} holds no tokenizer that can be read: {error}") from error
    return tokenizer


@contextmanager
def attention_refused_clearly(source: ModelSource) -> Iterator[None]:
    """An architecture without the wanted attention is a `ConfigError` that names the one that works."""
    try:
        yield
    except ValueError as error:
        if "attention implementation" not in str(error):
            raise
        raise ConfigError(
            f"attn_implementation: {source.model} cannot be run with {source.attn_implementation}; "
            "use attn_implementation: eager"
        ) from error


def check_safetensors(folder: Path) -> None:
    """Raises `FormatError` naming the first truncated or damaged file. Reads headers only."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise FormatError(f"{file} is damaged or truncated ({error}); get or write it again") from error


def _name_of(place: Place) -> str:
    return place.repository if isinstance(place, HubModel) else str(place.folder)


def _address(source: ModelSource, place: Place) -> dict[str, Any]:
    """What every `from_pretrained` is given."""
    revision = {"revision": source.revision or "main"} if isinstance(place, HubModel) else {}
    return {
        "pretrained_model_name_or_path": _name_of(place),
        "trust_remote_code": source.trust_remote_code,
        **revision,
    }


def _unusable(place: Place, error: Exception) -> ConfigError | FormatError:
    if isinstance(place, HubModel):
        return ConfigError(
            f"model: {place.repository!r} is not in the local hub cache and could not be fetched from the "
            f"hub ({str(error).splitlines()[0]}); {what_works(place.repository)}"
        )
    return FormatError(f"{place.folder} cannot be read as a model: {error}")


def _check_complete(name: str, info: dict[str, Any]) -> None:
    for problem, keys in (
        ("lacks", info["missing_keys"]),
        ("has another shape for", info["mismatched_keys"]),
    ):
        if keys:
            first = min(str(key[0] if isinstance(key, tuple) else key) for key in keys)
            raise FormatError(
                f"the checkpoint of {name} {problem} {len(keys)} of the tensors that its config promises, "
                f"first {first}; weights and config belong to different models, or a file is missing"
            )
