"""Published shapes of well-known models: planning and benchmarks then need neither the hub nor weights.

The numbers are facts of the published `config.json` files; a test recomputes every parameter count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_OPT = {
    "opt-125m": (768, 12, 12),
    "opt-1.3b": (2048, 24, 32),
    "opt-2.7b": (2560, 32, 32),
    "opt-6.7b": (4096, 32, 32),
    "opt-13b": (5120, 40, 40),
    "opt-30b": (7168, 48, 56),
}
"""Width, layers, heads."""

_LLAMA: dict[str, dict[str, object]] = {
    "llama-2-7b": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 11008,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    },
    "llama-2-13b": {
        "hidden_size": 5120,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "intermediate_size": 13824,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    },
    "llama-3.1-8b": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
    },
    "smollm2-135m": {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
}

_QWEN3 = {
    "qwen3-0.6b": (1024, 28, 16, 3072, True),
    "qwen3-1.7b": (2048, 28, 16, 6144, True),
    "qwen3-4b": (2560, 36, 32, 9728, True),
    "qwen3-8b": (4096, 36, 32, 12288, False),
}
"""Width, layers, heads, width of the MLP, tied head; 8 key-value heads of 128 each."""

_ALIASES = {
    "llama-2-7b-hf": "llama-2-7b",
    "llama-2-7b-chat-hf": "llama-2-7b",
    "llama-2-13b-hf": "llama-2-13b",
    "llama-2-13b-chat-hf": "llama-2-13b",
    "llama-3.1-8b-instruct": "llama-3.1-8b",
    "smollm2-135m-instruct": "smollm2-135m",
}
_ORGANISATIONS = frozenset({"facebook", "meta-llama", "qwen", "huggingfacetb"})


def shape_names() -> tuple[str, ...]:
    """Every name of the table."""
    return (*_OPT, *_LLAMA, *_QWEN3)


def known_shape(name: str) -> PretrainedConfig | None:
    """The config of a model of the table, by short name or hub id in any case; None for any other name."""
    from transformers import LlamaConfig, OPTConfig, Qwen3Config

    organisation, _, short = name.lower().rpartition("/")
    short = _ALIASES.get(short, short)
    if organisation and organisation not in _ORGANISATIONS:
        return None
    if short in _OPT:
        width, layers, heads = _OPT[short]
        return OPTConfig(
            hidden_size=width,
            word_embed_proj_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            ffn_dim=4 * width,
            vocab_size=50272,
            max_position_embeddings=2048,
        )
    if short in _LLAMA:
        return LlamaConfig(**_LLAMA[short])
    if short in _QWEN3:
        width, layers, heads, mlp, tied = _QWEN3[short]
        return Qwen3Config(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=8,
            head_dim=128,
            intermediate_size=mlp,
            vocab_size=151936,
            max_position_embeddings=40960,
            tie_word_embeddings=tied,
        )
    return None


def random_model(
    shape: str | PretrainedConfig,
    *,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    attn_implementation: str = "sdpa",
) -> PreTrainedModel:
    """A model of a known or given shape with random weights on the CPU, in eval mode; a function of `seed`.

    torch's global generator is left as it was. Raises `ValueError` for a name that is not in the table.
    """
    from transformers import AutoModelForCausalLM

    config = known_shape(shape) if isinstance(shape, str) else shape
    if config is None:
        raise ValueError(f"{shape!r} is not a known shape; known: {', '.join(shape_names())}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attn_implementation
        )
    model.config.use_cache = False
    return model.eval()
