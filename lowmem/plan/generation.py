"""What generating takes: the very slots that decode (`lowmem.models.slots`), run on fake tensors.

The keys and values of all slots are allocated with the first prompt, so the peak is a prompt being read beside a full
cache, or a step of all slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowmem.models.slots import KvDtype, Slots
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
    kv_dtype: KvDtype = "model"

    @property
    def context(self) -> int:
        return self.prompt + self.new


def generate_once(model: PreTrainedModel, shape: GenerationShape, tracker: LiveBytes) -> None:
    """Reads the longest prompt and decodes the last tokens, under an active `tracker`, in its phase `generate`."""
    with tracker.phase(PHASE):
        answer(model, shape, tracker)


def answer(model: PreTrainedModel, shape: GenerationShape, tracker: LiveBytes) -> None:
    """The same in the phase that is under way: answers that a loss asks for."""
    slots = Slots(model, slots=shape.rows, context=shape.context, pad_id=0, kv_dtype=shape.kv_dtype)
    tracker.mark_part("prefill")
    slots.extend(0, [1] * min(shape.prompt, 2))  # makes the cache, so that it is counted as what it is
    for tensor in slots.tensors:
        tracker.track(tensor, KV_CACHE)
    slots.clear(0)
    slots.extend(0, [1] * shape.prompt)
    tracker.mark_part("decode")
    slots.lengths[:] = [shape.context - 1] * shape.rows
    slots.step(dict.fromkeys(range(shape.rows), 1))


def cache_bytes(model: PreTrainedModel, shape: GenerationShape) -> int:
    """Bytes of the KV cache of all rows at their full length."""
    slots = Slots(model, slots=shape.rows, context=shape.context, pad_id=0, kv_dtype=shape.kv_dtype)
    slots.extend(0, [1])
    return slots.nbytes
