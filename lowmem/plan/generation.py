"""What generating takes: a prefill of the prompts, then one step with a full KV cache, run on fake tensors.

The model's own code makes and grows the cache (`transformers`' dynamic cache concatenates, layer by layer), so sliding
windows and grouped heads need no formulas. `lowmem.generate.decoder` is what a run does; a test compares the bytes.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowmem.plan.tracker import KV_CACHE, LiveBytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PHASE = "generate"


@dataclass(frozen=True)
class GenerationShape:
    """`rows` prompts of `prompt` tokens each, answered by up to `new` tokens."""

    rows: int
    prompt: int
    new: int

    @property
    def context(self) -> int:
        return self.prompt + self.new


def generate_once(model: PreTrainedModel, shape: GenerationShape, tracker: LiveBytes) -> None:
    """Prefill and the last step of an answer, under an active `tracker`, whose phase is `generate` meanwhile."""
    with tracker.phase(PHASE), torch.inference_mode():
        tracker.mark_part("prefill")
        cache, logits = _forward(model, None, shape.rows, shape.prompt, shape.prompt)
        _label(cache, tracker)
        del logits
        _grow(cache, shape.prompt, shape.context - 1)
        _label(cache, tracker)
        tracker.mark_part("decode")
        _forward(model, cache, shape.rows, 1, shape.context)


def cache_bytes(model: PreTrainedModel, shape: GenerationShape) -> int:
    """Bytes of the KV cache of all rows at their full length."""
    tracker = LiveBytes()
    with torch.inference_mode(), tracker:
        cache, _ = _forward(model, None, shape.rows, shape.prompt, shape.prompt)
        _grow(cache, shape.prompt, shape.context)
        return sum(tensor.nbytes for tensor in _tensors(cache))


def _forward(model: Any, cache: Any, rows: int, tokens: int, context: int) -> tuple[Any, Tensor]:
    """One call of the model as the decoder makes it; returns its cache and logits."""
    accepted = inspect.signature(model.forward).parameters
    mask = torch.ones(rows, context, dtype=torch.long)
    mask[:1, :1] = 0  # prompts are padded on the left: a real mask
    more: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
    if "position_ids" in accepted:
        more["position_ids"] = (mask.cumsum(dim=-1) - 1).clamp_min(0)[:, -tokens:]
    ids = torch.ones(rows, tokens, dtype=torch.long)
    out = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **more)
    return out.past_key_values, out.logits[:, -1]


def _layers(cache: Any) -> list[Any]:
    """Layers of the cache that hold keys and values (others hold a state of fixed size)."""
    return [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]


def _tensors(cache: Any) -> list[Tensor]:
    return [tensor for layer in _layers(cache) for tensor in (layer.keys, layer.values)]


def _grow(cache: Any, before: int, after: int) -> None:
    """Every layer that has kept `before` positions has `after`; those with a shorter window stay as they are."""
    for layer in _layers(cache):
        if layer.keys.shape[-2] == before:
            layer.keys = _longer(layer.keys, after)
            layer.values = _longer(layer.values, after)


def _longer(tensor: Tensor, length: int) -> Tensor:
    return tensor.new_empty((*tensor.shape[:-2], length, tensor.shape[-1]))


def _label(cache: Any, tracker: LiveBytes) -> None:
    for tensor in _tensors(cache):
        tracker.track(tensor, KV_CACHE)
