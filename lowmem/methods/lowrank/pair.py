"""The two factors of one adapter, B A, for update rules that must see them together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lowmem.errors import ConfigError
from lowmem.models.names import canonical_name

ADAPTER = "default"
"""The name under which peft files the only adapter of a run."""


@dataclass(frozen=True)
class Pair:
    """y = W0 x + scale B A x. `first` holds A (R, n) and `second` B (m, R), both trained and fp32."""

    name: str
    """Canonical name of the adapted layer."""
    first: nn.Linear
    second: nn.Linear
    scale: float
    """alpha / r, or alpha / sqrt(r)."""

    @property
    def a(self) -> Tensor:
        return self.first.weight

    @property
    def b(self) -> Tensor:
        return self.second.weight


def find_pairs(model: nn.Module) -> tuple[Pair, ...]:
    """Every trained adapter of `model`, by name. Raises `ConfigError` where an adapter is not two linear layers."""
    pairs = {}
    for name, module in model.named_modules():
        first: Any = getattr(module, "lora_A", {})
        if not isinstance(first, nn.ModuleDict) or ADAPTER not in first:
            continue
        layer: Any = module
        title = canonical_name(f"{name}.")[:-1]
        half_a, half_b = first[ADAPTER], layer.lora_B[ADAPTER]
        if not (isinstance(half_a, nn.Linear) and isinstance(half_b, nn.Linear)):
            raise ConfigError(
                f"method.lora_target_modules: the adapter of {title} is a {type(half_a).__name__}, but this method "
                "trains adapters of linear layers; leave that layer out or use method: lora"
            )
        pairs[title] = Pair(title, half_a, half_b, float(layer.scaling[ADAPTER]))
    return tuple(pairs[title] for title in sorted(pairs))
