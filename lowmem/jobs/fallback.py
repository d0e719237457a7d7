"""What a rescue falls back to, by name: the model's own second planes, or another model with the same tokenizer."""

from __future__ import annotations

from lowmem.errors import ConfigError
from lowmem.events import Sink
from lowmem.generate.fallback import NESTED, Fallback, nested_precisions
from lowmem.jobs.target import DtypeName, Target, open_target


def open_fallback(
    target: Target, name: str | None, *, sink: Sink, device: str = "auto", dtype: DtypeName | None = None
) -> Fallback | None:
    """The fallback `name` for `target`; None for none.

    Raises `ConfigError` for "nested" where the model has no second planes, and for a model with other tokens.
    """
    if name is None:
        return None
    if name == NESTED:
        nested_precisions(target.loaded.model)
        return Fallback()
    other = open_target(name, sink=sink, device=device, dtype=dtype)
    if other.loaded.tokenizer.get_vocab() != target.loaded.tokenizer.get_vocab():
        raise ConfigError(
            f"--fallback {name}: its tokenizer is not that of {target.loaded.name}, so it cannot read the same tokens; "
            "name a model of the same family, such as the one that was quantized"
        )
    return Fallback(other.loaded.model)
