"""Tiny random models and batches for tests: a few thousand parameters, a fraction of a second."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowmem.config.run import RunConfig
from lowmem.data.batch import IGNORE, Batch, Options

VOCABULARY = 96
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
ARCHITECTURES = ("opt", "llama", "qwen3", "gpt2", "gemma2", "gemma3", "bloom", "phi", "cohere", "granite")


def tiny_config(architecture: str, **changes: Any) -> Any:
    """A transformers config of `architecture` with two layers of width 32."""
    import transformers as t

    sizes = _SIZES | changes
    gqa = {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
    match architecture:
        case "opt":
            return t.OPTConfig(
                **sizes,
                ffn_dim=64,
                word_embed_proj_dim=16,
                max_position_embeddings=128,
                dropout=0.0,
                attention_dropout=0.0,
            )
        case "llama":
            return t.LlamaConfig(**({"intermediate_size": 64, "tie_word_embeddings": True} | sizes))
        case "qwen3":
            return t.Qwen3Config(**sizes, **gqa)
        case "gpt2":
            renamed = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
            rest = {k: v for k, v in sizes.items() if not k.startswith(("hidden", "num_"))}
            return t.GPT2Config(**renamed, **rest, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        case "gemma2":
            return t.Gemma2Config(**sizes, **gqa)
        case "gemma3":
            return t.Gemma3TextConfig(**sizes, **gqa)
        case "bloom":
            return t.BloomConfig(**sizes, hidden_dropout=0.0, attention_dropout=0.0)
        case "phi":
            return t.PhiConfig(**sizes, intermediate_size=64)
        case "cohere":
            return t.CohereConfig(**sizes, intermediate_size=64, logit_scale=0.3)
        case "granite":
            return t.GraniteConfig(**sizes, intermediate_size=64, logits_scaling=3.0)
        case _:
            raise AssertionError(architecture)


def tiny_model(
    architecture: str = "llama", *, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any
) -> Any:
    """A random model in eval mode; the same seed gives the same weights."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(architecture, **changes), dtype=dtype)
    return model.eval()


def tokens(rows: int, length: int, *, seed: int = 0) -> Tensor:
    """(rows, length) ids away from the special tokens; the second half repeats the first, so there is a lesson."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, VOCABULARY, (rows, length), generator=generator)
    ids[:, length // 2 :] = ids[:, : length - length // 2]
    return ids


def lm_batch(rows: int = 4, length: int = 12, *, seed: int = 0) -> Batch:
    """Right-padded rows of different lengths; the first third of each carries no loss."""
    ids = tokens(rows, length, seed=seed)
    lengths = torch.tensor([length - row % 3 for row in range(rows)])
    mask = (torch.arange(length) < lengths[:, None]).long()
    labels = torch.where((mask == 1) & (torch.arange(length) >= length // 3), ids, IGNORE)
    return Batch(ids * mask, mask, labels)


def rows_of(batch: Batch, start: int, stop: int) -> Batch:
    """The same rows as a micro-batch of their own."""
    assert batch.attention_mask is not None
    return Batch(batch.input_ids[start:stop], batch.attention_mask[start:stop], batch.labels[start:stop])


def option_batch(examples: int = 3, *, one_token: bool, seed: int = 0) -> Batch:
    """A two-option task in either layout."""
    gold = torch.arange(examples) % 2
    if one_token:
        ids = tokens(examples, 8, seed=seed)
        choice = torch.tensor([[5, 6]]).expand(examples, 2)
        nothing = torch.full_like(ids, IGNORE)
        index = torch.arange(examples)
        options = Options(index, torch.zeros_like(index), gold, 2, token_ids=choice)
        return Batch(ids, torch.ones_like(ids), nothing, options=options)
    prompts = tokens(examples, 8, seed=seed).repeat_interleave(2, dim=0)
    endings = torch.tensor([[5, 7], [6, 8]]).repeat(examples, 1)
    ids = torch.cat([prompts, endings], dim=1)
    labels = torch.cat([torch.full_like(prompts, IGNORE), endings], dim=1)
    example = torch.arange(examples).repeat_interleave(2)
    options = Options(example, torch.arange(2).repeat(examples), gold, 2)
    return Batch(ids, torch.ones_like(ids), labels, options=options)


def run_config(**changes: Any) -> RunConfig:
    """A valid config whose model and dataset are never opened."""
    return RunConfig(**({"model": "none", "dataset": [{"format": "auto", "path": "none"}], "dtype": "fp32"} | changes))
