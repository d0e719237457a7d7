"""Saving and restoring named tensors of a method, with errors that name the tensor."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from lowmem.errors import CheckpointError, NonFiniteError

MAX_SKIPS = 5
"""Consecutive steps without a finite loss or gradient before a run is given up."""


def restore_(targets: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Targets take the values saved under their names. Raises `CheckpointError` where more than values differs."""
    if missing := sorted(targets.keys() - saved.keys()):
        raise CheckpointError(f"the checkpoint lacks the tensor {missing[0]!r} ({len(missing)} missing in all)")
    if extra := sorted(saved.keys() - targets.keys()):
        raise CheckpointError(
            f"the checkpoint holds the tensor {extra[0]!r}, which this run does not have ({len(extra)} in all); "
            "it was written by another model or method"
        )
    for name, target in targets.items():
        source = saved[name]
        if source.shape != target.shape or source.dtype != target.dtype:
            raise CheckpointError(
                f"the checkpoint's tensor {name!r} is {tuple(source.shape)} {source.dtype}, "
                f"this run needs {tuple(target.shape)} {target.dtype}"
            )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(saved[name])


def scalar(tensor: Tensor) -> float:
    """The number in a one-element tensor; 1.0 for a fake tensor, which has a size but no value (planning)."""
    return 1.0 if isinstance(tensor, FakeTensor) else float(tensor.detach())


def values(tensor: Tensor) -> list[float]:
    """The numbers in a vector; for a fake tensor (planning) ones, or the value that the planner gave it."""
    if isinstance(tensor, FakeTensor):
        return [float(getattr(tensor, "planned_value", 1.0))] * tensor.numel()
    return list(map(float, tensor.tolist()))


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


class SkipCounter:
    """Counts consecutive skipped steps and gives up after `MAX_SKIPS`."""

    def __init__(self) -> None:
        self.in_a_row = 0

    def record(self, skipped: bool, *, step: int, why: str) -> None:
        """Raises `NonFiniteError` at the fifth skip in a row."""
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        if self.in_a_row >= MAX_SKIPS:
            raise NonFiniteError(
                f"step {step}: {why} for {MAX_SKIPS} steps in a row; use a lower learning_rate, dtype: bf16 or fp32 "
                "instead of fp16, or look for broken samples with `lowmem train --dry-run`"
            )
