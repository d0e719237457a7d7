"""One way of coding a model with our own codes: options per matrix, the coded model judged, losses matrix by matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lowmem.quant.codec import BLOCK
from lowmem.quant.harp import FitOptions
from lowmem.quant.model import decoder_blocks, fingerprint, quantize_blocks
from lowmem.quant.quantize import Candidate, QuantizedWeight, QuantizeOptions
from lowmem.quant.rotation import kronecker_schedule
from lowmem.quant.store import WeightStore
from quant.judge import Judge, as_batches, logits_of

CANDIDATES: dict[str, tuple[Candidate, ...]] = {
    "none": ("none",),
    "rht": ("rht",),
    "harp": ("rht", "harp", "harp-conditional"),
}
"""`harp` is gated: the RHT stays where it loses less."""
ROUNDED: dict[str, tuple[Candidate, ...]] = CANDIDATES | {"harp": ("harp",)}
"""Without error feedback, an ablation: the paper's fit alone."""


def angle_bytes(order: int) -> int:
    """Bytes that HARP's angles of one side take in a file beyond the RHT's signs."""
    return sum(order // b * (b * (b - 1) // 2 + 2) for b in kronecker_schedule(order).radices)


def equal_group(shape: tuple[int, int]) -> int:
    """The widest group of columns whose scales cost at least as much as HARP's angles; never narrower than a block."""
    m, n = shape
    groups = max(1, -(-(angle_bytes(m) + angle_bytes(n)) // (2 * m)) + 1)
    return max(BLOCK, n // groups // BLOCK * BLOCK)


def options_of(variant: dict[str, Any], settings: dict[str, Any], shape: tuple[int, int]) -> QuantizeOptions:
    feedback = variant["feedback"] == "ldlq"
    return QuantizeOptions(
        kind=variant["kind"],
        candidates=(CANDIDATES if feedback else ROUNDED)[variant["rotation"]],
        error_feedback=feedback,
        sweeps=settings["sweeps"],
        group_size=equal_group(shape) if variant.get("bytes") == "harp" else 0,
        seed=settings["seed"],
        fit=FitOptions(steps=settings["fit_steps"]),
    )


def code(
    model: Any, calibration: Sequence[Tensor], variant: dict[str, Any], settings: dict[str, Any], folder: Path
) -> dict[str, QuantizedWeight]:
    """`model` holds the decoded weights after; the codes by name. Blocks in `folder` are not coded again."""
    batches = as_batches(calibration)

    def options_for(name: str) -> QuantizeOptions:
        weight = model.get_submodule(name).weight
        return options_of(variant, settings, (weight.shape[0], weight.shape[1]))

    store = WeightStore(folder, fingerprint(model, batches, options_for))
    weights: dict[str, QuantizedWeight] = {}
    quantize_blocks(model, batches, options_for, store, on_weight=weights.__setitem__)
    return weights


def outcome(model: Any, weights: dict[str, QuantizedWeight], judge: Judge) -> dict[str, Any]:
    """What the coded model loses, its size, and every matrix's candidates."""
    coded = sum(model.get_submodule(name).weight.numel() for name in weights)
    nbytes = sum(weight.nbytes for weight in weights.values())
    return {
        **judge(logits_of(model)),
        "linear_bits": 8 * nbytes / coded,
        "linear_bytes": nbytes,
        "matrices": {
            name: {
                "chosen": weight.chosen,
                "nbytes": weight.nbytes,
                "losses": {report.name: report.loss for report in weight.reports},
                "seconds": sum(report.seconds for report in weight.reports),
            }
            for name, weight in weights.items()
        },
    }


def linears(model: Any) -> dict[str, nn.Linear]:
    """Every linear layer of the blocks, by name."""
    prefix, blocks = decoder_blocks(model)
    found = ((name, module) for name, module in blocks.named_modules() if isinstance(module, nn.Linear))
    return {f"{prefix}.{name}": module for name, module in found}
