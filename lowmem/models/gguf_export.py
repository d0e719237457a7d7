"""A transformers model as a 16-bit GGUF file, for llama.cpp and what is built on it: Llama, Qwen2 and Qwen3 families.

Matrices are fp16 (or bf16 when the model is), vectors fp32, as llama.cpp's own converter chooses. Llama's query and
key rows are reordered: GGUF interleaves the two halves of each rotary pair. Tokenizers are byte-level BPE; others are
refused by name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lowmem.errors import FormatError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_NORMAL, _CONTROL, _USER = 1, 3, 4


def write_gguf(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """`path` holds `model` and `tokenizer`. Raises `FormatError`, leaving no file, for what is not covered."""
    import gguf

    family = _family(model)
    vocabulary = _vocabulary(tokenizer, model)
    partial = path.with_name(f".partial-{path.name}")
    writer = gguf.GGUFWriter(partial, family)
    _write_shape(writer, model)
    _write_tokenizer(writer, tokenizer, vocabulary)
    names = gguf.get_tensor_name_map(_architecture(family), model.config.num_hidden_layers)
    for name, tensor in _weights(model):
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise FormatError(f"{type(model).__name__}: GGUF has no name for {name}; export --to hf instead")
        writer.add_tensor(target, *_stored(_reordered(name, tensor, model.config, family)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)


def _family(model: PreTrainedModel) -> str:
    kind = model.config.model_type
    if kind not in FAMILIES:
        raise FormatError(
            f"{type(model).__name__} ({kind}) is not exported to GGUF; these are: {', '.join(FAMILIES)}. "
            "Use --to hf, and llama.cpp's own converter"
        )
    scaling = getattr(model.config, "rope_parameters", None) or {}
    if scaling.get("rope_type", "default") != "default":
        raise FormatError(f"rope scaling of type {scaling['rope_type']!r} is not exported to GGUF; use --to hf")
    if family_window := getattr(model.config, "sliding_window", None):
        raise FormatError(f"a sliding window of {family_window} tokens is not exported to GGUF; use --to hf")
    return FAMILIES[kind]


def _architecture(family: str) -> Any:
    import gguf

    return {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[family]


def _write_shape(writer: Any, model: PreTrainedModel) -> None:
    config: Any = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(Path(str(config.name_or_path or "lowmem")).name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float((config.rope_parameters or {}).get("rope_theta", 10_000.0)))
    writer.add_rope_dimension_count(head)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_vocab_size(config.vocab_size)


def _vocabulary(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> dict[str, Any]:
    """Tokens by id, their types and the merges. Raises `FormatError` for anything but byte-level BPE."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    plain: dict[str, Any] = (
        json.loads(backend.to_str()) if backend is not None else {"model": {"type": "no fast tokenizer"}}
    )
    if plain["model"]["type"] != "BPE" or "ByteLevel" not in json.dumps(plain.get("pre_tokenizer")):
        raise FormatError(
            f"the tokenizer is {plain['model']['type']}, not byte-level BPE, and is not exported to GGUF; use --to hf"
        )
    size = model.config.vocab_size
    tokens = [f"[PAD{index}]" for index in range(size)]
    kinds = [_USER] * size
    for text, index in plain["model"]["vocab"].items():
        tokens[index], kinds[index] = text, _NORMAL
    for added in plain["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = _CONTROL if added["special"] else _USER
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in plain["model"]["merges"]]
    return {"tokens": tokens, "kinds": kinds, "merges": merges, "pre": _pre(plain["pre_tokenizer"])}


def _pre(pre_tokenizer: Any) -> str:
    """llama.cpp's name of the way in which text is split before merging."""
    text = json.dumps(pre_tokenizer)
    if "{1,3}" in text:
        return "llama-bpe"
    if "Digits" in text:
        return "smollm"
    return "qwen2" if "Split" in text else "gpt-2"


def _write_tokenizer(writer: Any, tokenizer: PreTrainedTokenizerBase, vocabulary: dict[str, Any]) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary["pre"])
    writer.add_token_list(vocabulary["tokens"])
    writer.add_token_types(vocabulary["kinds"])
    writer.add_token_merges(vocabulary["merges"])
    for name in ("bos", "eos", "pad", "unk"):
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(int(index))
    writer.add_add_bos_token(
        tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    )
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _weights(model: PreTrainedModel) -> list[tuple[str, Tensor]]:
    """Parameters by checkpoint name, ties once: GGUF reads a missing head as tied."""
    return [(name, parameter.detach()) for name, parameter in model.named_parameters()]


def _reordered(name: str, tensor: Tensor, config: Any, family: str) -> Tensor:
    """Rows of Llama's q and k: of each head, first and second halves alternate."""
    if family != "llama" or not name.endswith(("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")):
        return tensor
    heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _stored(tensor: Tensor) -> tuple[Any, tuple[int, ...] | None, Any]:
    """Numbers, their shape and type as the writer wants them."""
    import gguf

    if tensor.dim() == 1:
        return tensor.float().cpu().numpy(), None, None
    if tensor.dtype == torch.bfloat16:
        raw = tensor.contiguous().cpu().view(torch.uint8).numpy()
        return raw, None, gguf.GGMLQuantizationType.BF16
    half = tensor.half()
    if not bool(torch.isfinite(half).all()):
        raise FormatError("a weight is too large for fp16; export the run with dtype: bf16")
    return np.ascontiguousarray(half.cpu().numpy()), None, None
