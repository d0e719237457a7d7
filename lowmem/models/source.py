"""What is asked for when a model is loaded: the model keys of a run, without the rest of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from lowmem.config.quantization import NoQuantization, Quantization
from lowmem.config.run import RunConfig
from lowmem.errors import ConfigError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class ModelSource:
    """A model by name, and the form in which its weights are wanted.

    For a run folder, `model` names the run; the base it was trained from comes out of its config.yaml, and
    everything else here applies to that base.
    """

    model: str
    revision: str | None = None
    dtype: Literal["fp32", "bf16", "fp16"] = "bf16"
    attn_implementation: Literal["sdpa", "eager"] = "sdpa"
    trust_remote_code: bool = False
    quantization: Quantization = field(default_factory=NoQuantization)
    chat_template: str | None = None
    """A Jinja template that replaces the tokenizer's."""

    @classmethod
    def from_config(cls, config: RunConfig) -> ModelSource:
        """The model keys of `config`."""
        return cls(
            model=config.model,
            revision=config.revision,
            dtype=config.dtype,
            attn_implementation=config.attn_implementation,
            trust_remote_code=config.trust_remote_code,
            quantization=config.quantization,
            chat_template=config.chat_template,
        )

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]


def pick_device(name: str) -> torch.device:
    """The device that "auto", "cpu" or "cuda" means here. Raises `ConfigError` for "cuda" without one."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("device: cuda was asked for and torch sees no CUDA device; use device: cpu or auto")
    return torch.device("cuda" if available and name != "cpu" else "cpu")
