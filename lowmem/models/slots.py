"""A fixed number of sequences inside one model: keys and values in slots that are filled, cut back and reused.

Every step computes all slots, also empty ones, and attends over a length that is a multiple of `STRIDE`, so the shapes
do not tell how many neighbours a sequence has and what they do: its logits are the same bits whatever is beside it
(tested). A prompt is read by itself, into its own slot. Going back is forgetting positions: nothing is copied.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from lowmem.errors import ConfigError, FormatError
from lowmem.models.kv_cache import SlotLayer, StoredBits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STRIDE = 64
"""Positions that are attended to come in steps of this: a multiple of every vector width, so that masked positions
change no rounding."""
KvDtype = Literal["model", "int8", "int4"]
_BITS: dict[str, StoredBits] = {"model": None, "int8": 8, "int4": 4}


class Slots:
    """`slots` sequences of at most `context` tokens in `model`, which must be in eval mode while it computes.

    Owns the KV cache: 2 x layers x KV heads x head size x slots x context numbers, in the model's dtype or in
    `kv_dtype` codes. Raises `FormatError` for a model that cannot be decoded so.
    """

    def __init__(
        self, model: PreTrainedModel, *, slots: int, context: int, pad_id: int, kv_dtype: KvDtype = "model"
    ) -> None:
        from transformers.cache_utils import Cache

        _require_positions(model)
        self._model: Any = model
        self._device, self._dtype = model.device, model.dtype
        self.context, self.slots = context, slots
        self._capacity = -(-context // STRIDE) * STRIDE
        text: Any = model.config.get_text_config()
        self._layers = [SlotLayer(slots, self._capacity, bits=_BITS[kv_dtype]) for _ in range(text.num_hidden_layers)]
        self._cache = Cache(layers=cast(Any, self._layers))
        self._keep: dict[str, Any] = {"logits_to_keep": 1} if _takes(model, "logits_to_keep") else {}
        self._windows = _windows(text)
        self._pad = pad_id
        self.lengths = [0] * slots

    @property
    def nbytes(self) -> int:
        """Bytes of the cache; 0 before the first token."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def tensors(self) -> list[Tensor]:
        """What the cache consists of; nothing before the first token."""
        return [tensor for layer in self._layers for tensor in layer.tensors]

    @torch.inference_mode()
    def extend(self, slot: int, tokens: Sequence[int]) -> Tensor:
        """(V,) logits after `tokens` (at least one) have followed what is in `slot`.

        Raises `ConfigError` when the slot has no room for them.
        """
        start, end = self.lengths[slot], self.lengths[slot] + len(tokens)
        if end > self.context:
            raise ConfigError(f"{end} tokens do not fit a context of {self.context}; shorten the prompt")
        ids = torch.tensor([list(tokens)], device=self._device)
        queries = torch.arange(start, end, device=self._device)
        for layer in self._layers:
            layer.aim(slice(slot, slot + 1), queries[None], _stride(end))
        logits = self._forward(ids, queries[None], _stride(end))
        self.lengths[slot] = end
        return logits[0]

    @torch.inference_mode()
    def step(self, tokens: dict[int, int]) -> dict[int, Tensor]:
        """(V,) logits of each slot in `tokens` after one more token of each; other slots stay as they are."""
        longest = max(self.lengths[slot] for slot in tokens) + 1
        if longest > self.context:
            raise ConfigError(f"a sequence has filled its context of {self.context} tokens")
        ids = torch.full((self.slots, 1), self._pad, dtype=torch.int64)
        for slot, token in tokens.items():
            ids[slot] = token
        # Slots that stand still write where their next token will come: it overwrites what was written.
        places = torch.tensor(self.lengths, device=self._device).clamp_max(self._capacity - 1)[:, None]
        attended = _stride(longest)
        for layer in self._layers:
            layer.aim(slice(0, self.slots), places, attended)
        logits = self._forward(ids.to(self._device), places, attended)
        for slot in tokens:
            self.lengths[slot] += 1
        return {slot: logits[slot] for slot in tokens}

    def rewind(self, slot: int, count: int) -> None:
        """The last `count` tokens of `slot` never came."""
        if not 0 <= count <= self.lengths[slot]:
            raise ValueError(f"cannot rewind {count} tokens of {self.lengths[slot]}")
        self.lengths[slot] -= count

    @torch.inference_mode()
    def share(self, source: int, slot: int, count: int) -> None:
        """The first `count` tokens of `source` are those of the empty `slot` too: a common beginning is read once."""
        for layer in self._layers:
            layer.copy(source, slot, count)
        self.lengths[slot] = count

    def clear(self, slot: int) -> None:
        """The slot is empty."""
        self.lengths[slot] = 0

    def _forward(self, ids: Tensor, places: Tensor, attended: int) -> Tensor:
        """(rows, V) logits after the last column of `ids`, whose positions are `places`."""
        out = self._model(
            input_ids=ids,
            attention_mask=self._masks(places, attended),
            position_ids=places,
            past_key_values=self._cache,
            use_cache=True,
            **self._keep,
        )
        if not self._layers[0].is_initialized:
            raise FormatError(f"{type(self._model).__name__} did not use the key-value cache that it was given")
        return cast(Tensor, out.logits[:, -1])

    def _masks(self, places: Tensor, attended: int) -> Any:
        """(rows, 1, queries, attended): what each position sees, for each kind of layer that the model has."""
        keys = torch.arange(attended, device=self._device)
        made = {}
        for kind, window in self._windows.items():
            seen = keys <= places[..., None]
            if window is not None:
                seen &= keys > places[..., None] - window
            mask = torch.zeros(seen.shape, dtype=self._dtype, device=self._device)
            made[kind] = mask.masked_fill_(~seen, torch.finfo(self._dtype).min)[:, None]
        return made.get("", made)


def _windows(text: Any) -> dict[str, int | None]:
    """How far back each kind of layer sees; a model of one kind takes one mask, under the name ""."""
    window = getattr(text, "sliding_window", None)
    usual = "full_attention" if window is None else "sliding_attention"
    kinds = sorted(set(getattr(text, "layer_types", None) or [usual]))
    unknown = [kind for kind in kinds if kind not in ("full_attention", "sliding_attention")]
    if unknown:
        raise FormatError(
            f"layers of kind {unknown[0]!r} keep no keys and values per token, so they cannot be decoded here; use an "
            "attention model such as OPT, Llama, Qwen3, Gemma or GPT-2"
        )
    if len(kinds) == 1:
        return {"": window if kinds == ["sliding_attention"] else None}
    return {kind: window if kind == "sliding_attention" else None for kind in kinds}


def _require_positions(model: Any) -> None:
    if not _takes(model, "position_ids") or not _takes(model, "past_key_values"):
        raise FormatError(
            f"{type(model).__name__} takes no explicit positions or no key-value cache, so its sequences cannot share "
            "a batch here; use an attention model such as OPT, Llama, Qwen3, Gemma or GPT-2"
        )


def _takes(model: Any, name: str) -> bool:
    return name in inspect.signature(model.forward).parameters


def _stride(length: int) -> int:
    return -(-length // STRIDE) * STRIDE
