"""Prefill and decode of any transformers causal LM, with its own KV cache, several prompts at a time."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from lowmem.errors import FormatError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Decoder:
    """A batch of sequences inside `model`: logits of the next token of each, one step at a time.

    Prompts are padded on the left, so every sequence ends in the same column. Padding is masked, and
    positions count real tokens only, so a prompt gives the same logits whatever stands beside it. Owns the KV
    cache.
    """

    def __init__(self, model: PreTrainedModel, *, pad_id: int) -> None:
        self._model: Any = model
        self._pad_id = pad_id
        self._device = model.device
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._takes_keep = "logits_to_keep" in accepted
        self._cache: Any = None
        self._mask = torch.empty(0)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """(B, V) logits after each prompt (none empty). Forgets what was decoded before."""
        longest = max(len(prompt) for prompt in prompts)
        ids = torch.full((len(prompts), longest), self._pad_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        self._cache = None
        self._mask = mask.to(self._device)
        positions = (self._mask.cumsum(dim=-1) - 1).clamp_min(0)
        return self._forward(ids.to(self._device), positions)

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """(B, V) logits after one more token of each sequence."""
        ids = torch.tensor(tokens, device=self._device)[:, None]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=-1)
        return self._forward(ids, self._mask.sum(dim=-1, keepdim=True) - 1)

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Only these sequences go on; the cache of the others is freed."""
        index = torch.tensor(rows, device=self._device)
        self._mask = self._mask[index]
        self._cache.batch_select_indices(index)

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        more: dict[str, Any] = {"logits_to_keep": 1} if self._takes_keep else {}
        if self._takes_positions:
            more["position_ids"] = positions
        out = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
            **more,
        )
        self._cache = getattr(out, "past_key_values", None)
        if self._cache is None:
            raise FormatError(
                f"{type(self._model).__name__} keeps no key-value cache, so it cannot be decoded here; use "
                "an attention model such as OPT, Llama, Qwen3, Gemma or GPT-2"
            )
        return cast(Tensor, out.logits[:, -1])
