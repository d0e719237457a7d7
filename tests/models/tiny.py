"""Tiny random models of several families and a small byte-level tokenizer, all made on the spot."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BloomConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from lowmem.models.shapes import random_model

VOCABULARY = 320
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_TEXT = [
    "the cat sat on the mat and the dog ran after it",
    "one two three four five, what a day; naïve café 日本",
]


@cache
def _trained() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<|user|>", "<|assistant|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    return tokenizer


def tiny_tokenizer(*, chat: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level: any text survives a round trip. `<pad>` is 0 and `<eos>` is 1."""
    copy = Tokenizer.from_str(_trained().to_str())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=copy, pad_token="<pad>", eos_token="<eos>")
    if chat:
        tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_config(family: str) -> PretrainedConfig:
    """Two layers of width 32 in one of the families below."""
    ids = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    shared = {
        **ids,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
    }
    match family:
        case "opt":
            return OPTConfig(
                **ids,
                hidden_size=32,
                word_embed_proj_dim=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                ffn_dim=64,
                max_position_embeddings=128,
            )
        case "gpt2":
            return GPT2Config(**ids, n_embd=32, n_layer=2, n_head=4, n_positions=128)
        case "bloom":
            return BloomConfig(**ids, hidden_size=32, n_layer=2, n_head=4)
        case "mistral":
            return MistralConfig(**shared, sliding_window=8)
        case "gemma3":
            kinds = ["sliding_attention", "full_attention"]
            return Gemma3TextConfig(**shared, head_dim=8, sliding_window=8, layer_types=kinds)
        case "llama":
            return LlamaConfig(**shared)
        case "qwen3":
            return Qwen3Config(**shared, head_dim=8, tie_word_embeddings=True)
    raise AssertionError(family)


def tiny_model(family: str = "qwen3", *, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """Random weights, spread enough for the argmax to depend on the context."""
    attention = "eager" if family == "bloom" else "sdpa"
    model = random_model(tiny_config(family), dtype=dtype, seed=seed, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return model


def save_tiny(folder: Path, family: str = "qwen3", *, chat: bool = False) -> Path:
    """A transformers folder with a tiny model and its tokenizer."""
    tiny_model(family).save_pretrained(folder)
    tiny_tokenizer(chat=chat).save_pretrained(folder)
    return folder
