"""How sparse the inputs of a model's linear layers are, and how large.

Of each token's input x (d numbers, in fp32, eval mode), averaged over tokens:

    flatness   |x|_1 / (sqrt(d) |x|_2)                   1 all entries equal, 0.798 Gaussian, 1 / sqrt(d) one entry
    hoyer      (sqrt(d) - |x|_1 / |x|_2) / (sqrt(d) - 1)   0 all entries equal, 1 one entry
    tiny       share of entries below 1 % of the root mean square
    l1, l2, linf   |x|_1^2, |x|_2^2, max|x|^2               these scale with x; bounds on forgetting contain them

Tokens whose input is all zeros are left out. Which of these a paper means by "activation sparsity" is often not said.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lowmem.data.batch import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TINY = 0.01
NAMES = ("flatness", "hoyer", "tiny", "l1", "l2", "linf")


@dataclass(frozen=True)
class Sparsity:
    """Means over tokens, see the head of this file."""

    flatness: float
    hoyer: float
    tiny: float
    l1: float
    l2: float
    linf: float


def sparsity(x: Tensor) -> Tensor:
    """(6,) fp64: the sums over tokens of what `NAMES` names. `x` (N, d), no row zero."""
    x = x.float()
    size = x.shape[1]
    l1, l2 = x.abs().sum(1), x.norm(dim=1)
    ratio = l1 / l2
    tiny = (x.abs() < TINY * (l2 / size**0.5)[:, None]).float().mean(1)
    hoyer = (size**0.5 - ratio) / max(size**0.5 - 1, torch.finfo(torch.float32).tiny)
    rows = torch.stack([ratio / size**0.5, hoyer, tiny, l1.square(), l2.square(), x.abs().amax(1).square()])
    return rows.double().sum(1)


def linear_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Layers with a matrix outside of embeddings and the head, by name: nn.Linear, GPT-2's Conv1D, quantized ones."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or type(module).__name__ in ("Conv1D", "QuantLinear")) and module is not head
    }


def kind_of(name: str) -> str:
    """What modules at the same place of every layer share: `model.layers.3.mlp.down_proj` -> `mlp.down_proj`."""
    parts = name.split(".")
    numbered = max((i for i, part in enumerate(parts) if part.isdigit()), default=-1)
    return ".".join(parts[numbered + 1 :])


def measure_activations(model: PreTrainedModel, batches: Iterable[Batch]) -> dict[str, Sparsity]:
    """The inputs of each of `linear_modules` over all real tokens of `batches`."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def take(real: Tensor, name: str, x: Tensor) -> None:
        rows = x[real] if x.shape[:2] == real.shape else x.reshape(-1, x.shape[-1])  # routed tokens come flat
        rows = rows[rows.abs().amax(1) > 0]
        found = sparsity(rows)
        sums[name] = sums[name] + found if name in sums else found
        counts[name] = counts.get(name, 0) + len(rows)

    with torch.no_grad():
        for batch in batches:
            mask = batch.attention_mask
            real = (torch.ones_like(batch.input_ids) if mask is None else mask).bool()
            with _inputs(model, functools.partial(take, real)):
                positions: dict[str, Any] = {} if batch.position_ids is None else {"position_ids": batch.position_ids}
                model(input_ids=batch.input_ids, attention_mask=mask, use_cache=False, **positions)
    return {name: Sparsity(*(sums[name] / max(1, counts[name])).tolist()) for name in sums}


def by_kind(found: dict[str, Sparsity]) -> dict[str, Sparsity]:
    """Means over all layers that share a place."""
    groups: dict[str, list[Sparsity]] = {}
    for name, one in found.items():
        groups.setdefault(kind_of(name), []).append(one)
    return {
        kind: Sparsity(*(sum(getattr(one, key) for one in group) / len(group) for key in NAMES))
        for kind, group in groups.items()
    }


@contextmanager
def _inputs(model: PreTrainedModel, take: Callable[[str, Tensor], None]) -> Iterator[None]:
    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, inputs: take(name, inputs[0].detach())

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in linear_modules(model).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
