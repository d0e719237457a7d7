"""What training changed in every matrix, in the norms in which optimizers are steepest descent.

With D = W - W0 (out, in), y = W x, and the norm of D from inputs measured by a to outputs measured by b, forgetting on
old inputs is bounded by a multiple of |D|_{a->b}^2 E|x|_a^2 (Optimizer-Model Consistency, arXiv 2605.06654):

    max_entry   1 -> inf     sign descent; AdamW nearly          with E|x|_1^2
    spectral    2 -> 2       Muon                                with E|x|_2^2
    max_row     inf -> inf   largest sum of a row (RowMax)       with E|x|_inf^2
    max_column  1 -> 1       largest sum of a column (ColumnMax) with E|x|_1^2

Which of the four products orders runs as their forgetting does is what the report's rank correlations say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lowmem.diagnose.activations import Sparsity, linear_modules
from lowmem.kernels.noise import direction, stream_key

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INPUTS = {"max_entry": "l1", "spectral": "l2", "max_row": "linf", "max_column": "l1"}
"""For each norm, which size of the inputs it is paired with."""
POWER_STEPS = 100


@dataclass(frozen=True)
class UpdateNorms:
    """Of one matrix. `stable_rank`: squared Frobenius over squared spectral norm, 0 where nothing changed."""

    max_entry: float
    spectral: float
    frobenius: float
    max_row: float
    max_column: float
    stable_rank: float


def update_norms(change: Tensor) -> UpdateNorms:
    """`change` (out, in)."""
    d = change.detach() if change.dtype == torch.float64 else change.detach().float()
    size = d.abs()
    frobenius, spectral = float(d.norm()), largest_singular_value(d)
    return UpdateNorms(
        max_entry=float(size.max()),
        spectral=spectral,
        frobenius=frobenius,
        max_row=float(size.sum(1).max()),
        max_column=float(size.sum(0).max()),
        stable_rank=(frobenius / spectral) ** 2 if spectral else 0.0,
    )


def largest_singular_value(matrix: Tensor) -> float:
    """By the power method from a fixed start: never above it, and a full SVD of a large layer takes minutes."""
    size = float(matrix.abs().max())
    if size == 0:
        return 0.0
    scaled = matrix / size
    key = stream_key(0, 0, 0, "", "power")
    v = direction((matrix.shape[1],), key, "rademacher", device=matrix.device).to(matrix.dtype)
    for _ in range(POWER_STEPS):
        v = scaled.T @ (scaled @ (v / v.norm()))
        if not bool(v.any()):
            return 0.0
    return size * float((scaled @ (v / v.norm())).norm())


def changes(base: PreTrainedModel, tuned: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """D of each of the base's linear layers, fp32 (out, in). `tuned` may hold peft's adapters beside its weights."""
    modules = dict(tuned.named_modules())
    for name, module in linear_modules(base).items():
        yield name, _change(module, modules[name])


def measure_updates(base: PreTrainedModel, tuned: PreTrainedModel) -> dict[str, UpdateNorms]:
    """The norms of every linear layer's change, by name."""
    with torch.no_grad():
        return {name: update_norms(change) for name, change in changes(base, tuned)}


def bounds(updates: Mapping[str, Mapping[str, float]], inputs: Mapping[str, Sparsity]) -> dict[str, float]:
    """For each pair of norms, the sum over layers of |D|^2 E|x|^2."""
    sizes = {name: asdict(one) for name, one in inputs.items()}
    return {
        norm: sum(values[norm] ** 2 * sizes[name][size] for name, values in updates.items() if name in sizes)
        for norm, size in INPUTS.items()
    }


def _change(base: nn.Module, tuned: nn.Module) -> Tensor:
    layer: Any = tuned
    transposed = type(base).__name__ == "Conv1D"
    if hasattr(layer, "get_delta_weight"):  # an adapter of peft beside a frozen weight
        if any(layer.use_dora.values()):
            change = _effective(layer) - _effective(layer.base_layer)
            return change.T
        change = sum(layer.get_delta_weight(name).float() for name in layer.active_adapters)
    else:
        change = _weight(tuned) - _weight(base).to(_weight(tuned).device)
    return change.T if transposed else change


def _effective(layer: Any) -> Tensor:
    """(in, out), what `layer` does to each unit vector, its bias included."""
    weight = layer.weight
    size: int = getattr(layer, "in_features", weight.shape[0])
    found: Tensor = layer(torch.eye(size, dtype=weight.dtype, device=weight.device)).float()
    return found


def _weight(module: Any) -> Tensor:
    weight: Tensor = module.weight
    return weight.float()
