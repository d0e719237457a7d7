"""One layer's keys and values in slots, in the model's dtype or as 8- or 4-bit codes.

Codes are asymmetric per token and head (one fp16 scale and minimum for each vector of head size): the simplest scheme
without calibration, as in transformers' and vLLM's int8 caches; 4 bits store two codes a byte.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

StoredBits = Literal[8, 4] | None


class Store:
    """(slots, heads, capacity, size) numbers that are written and read by slot and position."""

    def __init__(self, like: Tensor, slots: int, capacity: int, bits: StoredBits) -> None:
        _, heads, _, size = like.shape
        self._bits: StoredBits = bits
        self._dtype = like.dtype
        width = size if bits != 4 else size // 2
        kind = like.dtype if bits is None else torch.uint8
        self.data = torch.zeros(slots, heads, capacity, width, dtype=kind, device=like.device)
        scales = (slots, heads, capacity, 2) if bits is not None else (0,)
        self.scales = torch.zeros(scales, dtype=torch.float16, device=like.device)

    def write(self, rows: slice, places: Tensor, states: Tensor) -> None:
        """`states` (rows, heads, T, size) at the positions `places` (rows, T)."""
        index = torch.arange(rows.start, rows.stop, device=states.device)[:, None]
        states = states.transpose(1, 2)  # (rows, T, heads, size), as advanced indexing wants it
        if self._bits is None:
            self.data[index, :, places] = states
            return
        low, high = states.float().aminmax(dim=-1, keepdim=True)
        least = low.half()
        step = ((high - least) / (2**self._bits - 1)).half().clamp_min(torch.finfo(torch.float16).tiny)
        codes = ((states - least.float()) / step.float()).round_().clamp_(0, 2**self._bits - 1).to(torch.uint8)
        if self._bits == 4:
            codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
        self.data[index, :, places] = codes
        self.scales[index, :, places] = torch.cat([step, least], dim=-1)

    def read(self, rows: slice, length: int) -> Tensor:
        """(rows, heads, length, size) in the model's dtype: a view where nothing is coded."""
        data = self.data[rows, :, :length]
        if self._bits is None:
            return data
        if self._bits == 4:
            data = torch.stack([data & 15, data >> 4], dim=-1).flatten(-2)
        scales = self.scales[rows, :, :length].float()
        return (data * scales[..., :1] + scales[..., 1:]).to(self._dtype)

    def copy(self, source: int, target: int, length: int) -> None:
        """The first `length` positions of slot `target` are those of `source`."""
        self.data[target, :, :length] = self.data[source, :, :length]
        if self._bits is not None:
            self.scales[target, :, :length] = self.scales[source, :, :length]


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """What transformers' attention calls; `aim` says beforehand which slots and positions the next call means."""

    is_sliding = False

    def __init__(self, slots: int, capacity: int, *, bits: StoredBits) -> None:
        super().__init__()
        self._slots, self._capacity, self._bits = slots, capacity, bits
        self._rows, self._places, self._length = slice(0, 0), torch.empty(0), 0

    @property
    def tensors(self) -> list[Tensor]:
        """Everything that is stored."""
        if not self.is_initialized:
            return []
        return [tensor for store in (self.stored_keys, self.stored_values) for tensor in (store.data, store.scales)]

    def aim(self, rows: slice, places: Tensor, length: int) -> None:
        """The next states belong to slots `rows` at `places` (rows, T), and attend to the first `length` positions."""
        self._rows, self._places, self._length = rows, places, length

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.stored_keys = Store(key_states, self._slots, self._capacity, self._bits)
        self.stored_values = Store(value_states, self._slots, self._capacity, self._bits)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.stored_keys.write(self._rows, self._places, key_states)
        self.stored_values.write(self._rows, self._places, value_states)
        return self.stored_keys.read(self._rows, self._length), self.stored_values.read(self._rows, self._length)

    def copy(self, source: int, target: int, length: int) -> None:
        self.stored_keys.copy(source, target, length)
        self.stored_values.copy(source, target, length)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return self._capacity
