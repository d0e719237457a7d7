"""Where a rescue goes when the low precision found no answer: the other planes of the same weights, or a second model.

A file of nested weights (`lowmem.quant`) holds a coarse model and, with its second planes, a finer one. The engine
decodes with the first planes and answers again with both where it must: no second set of weights, a second cache only.
A second model is read with the first one's tokens, so both must have the same vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lowmem.errors import ConfigError
from lowmem.generate.engine import Engine
from lowmem.models.slots import KvDtype
from lowmem.quant.linear import QuantLinear, at_precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NESTED = "nested"
"""The name that stands for the model's own second planes."""


@dataclass(frozen=True)
class Fallback:
    """`model` None: the second planes of the model itself."""

    model: PreTrainedModel | None = None


def fallback_slots(slots: int) -> int:
    """How many of `slots` requests may be answered again at once; the others wait."""
    return max(1, slots // 4)


def engine_with(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fallback: Fallback | None,
    *,
    slots: int,
    context: int,
    kv_dtype: KvDtype = "model",
    reuse_prefixes: bool = False,
) -> Engine:
    """An engine whose rescues end in `fallback`. Raises `ConfigError` for `NESTED` planes that the model has not."""
    build = partial(Engine, tokenizer=tokenizer, context=context, kv_dtype=kv_dtype, reuse_prefixes=reuse_prefixes)
    if fallback is None:
        return build(model, slots=slots)
    if fallback.model is not None:
        high = build(fallback.model, slots=fallback_slots(slots), precision="high")
        return build(model, slots=slots, fallback=high)
    low, full = nested_precisions(model)
    high = build(model, slots=fallback_slots(slots), precision="high", inside=full)
    return build(model, slots=slots, inside=low, fallback=high)


def nested_precisions(
    model: PreTrainedModel,
) -> tuple[Callable[[], AbstractContextManager[None]], Callable[[], AbstractContextManager[None]]]:
    """What to enter around a forward pass: for the first planes alone, and for both. Raises `ConfigError`."""
    nested = [one for one in model.modules() if isinstance(one, QuantLinear) and one.kind in ("e8r", "nested")]
    if not nested:
        raise ConfigError(
            "fallback nested: no layer of the model has two planes; quantize it with a kind that has them, "
            "or name a second model to fall back to"
        )
    return partial(at_precision, nested, "base"), partial(at_precision, nested, "full")
