"""What the rest of the package calls: the functions of `reference`, carried out by a recorded choice.

`auto` takes the native kernels on a CPU and the Triton kernels on a GPU, and the torch reference where those cannot
be had, with the reason kept for `lowmem doctor`. The environment variable LOWMEM_KERNELS forces one of them. All
give the same bits, so a choice changes speed and nothing else.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from lowmem.errors import KernelUnavailable
from lowmem.kernels import native, reference
from lowmem.kernels.build import LEVELS
from lowmem.kernels.noise import Kind, LowRank, Rows, stream_key
from lowmem.kernels.reference import Update, stochastic_round

__all__ = [
    "Choice",
    "KernelChoice",
    "Kind",
    "LowRank",
    "Rows",
    "chosen",
    "direction",
    "perturbed",
    "perturbed_pair",
    "replay_",
    "stochastic_round",
    "stream_key",
    "update_",
]

ENVIRONMENT = "LOWMEM_KERNELS"


class KernelChoice(StrEnum):
    AUTO = "auto"
    REFERENCE = "reference"
    NATIVE = "native"
    TRITON = "triton"


@dataclass(frozen=True)
class Choice:
    """The implementation in use (never AUTO) and why."""

    name: KernelChoice
    reason: str


def chosen(device: torch.device, dtype: torch.dtype) -> Choice:
    """The implementation for weights of `dtype` on `device`.

    Raises `KernelUnavailable` when LOWMEM_KERNELS names one that is unknown or cannot run here.
    """
    return _choose(os.environ.get(ENVIRONMENT, "auto"), device.type, dtype)


@lru_cache(maxsize=64)
def _choose(asked: str, device: str, dtype: torch.dtype) -> Choice:
    try:
        name = KernelChoice(asked)
    except ValueError:
        usable = ", ".join(choice.value for choice in KernelChoice)
        raise KernelUnavailable(f"{ENVIRONMENT}={asked} is no implementation; use one of {usable}") from None
    forced = f"{ENVIRONMENT}={asked}"
    match name:
        case KernelChoice.REFERENCE:
            return Choice(name, forced)
        case KernelChoice.NATIVE:
            return Choice(name, f"{forced}, {_native_level(device)}")
        case KernelChoice.TRITON:
            _require_triton(device)
            return Choice(name, forced)
    return _automatic(device)


def _automatic(device: str) -> Choice:
    """A named choice where the fast implementation runs, else the reference with what kept it from running."""
    try:
        if device == "cuda":
            _require_triton(device)
            return Choice(KernelChoice.TRITON, "Triton is installed")
        return Choice(KernelChoice.NATIVE, _native_level(device))
    except KernelUnavailable as missing:
        return Choice(KernelChoice.REFERENCE, str(missing))


def _native_level(device: str) -> str:
    if device not in ("cpu", "meta"):
        raise KernelUnavailable(
            f"the native kernels run on the CPU, not on {device}; use {ENVIRONMENT}=auto or reference there"
        )
    return f"built for {LEVELS[native.level()]}"


def _require_triton(device: str) -> None:
    if importlib.util.find_spec("triton") is None:
        raise KernelUnavailable(
            "the Triton kernels need the package triton, which is not installed: pip install triton,"
            f" or set {ENVIRONMENT}=reference"
        )
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise KernelUnavailable(
            f"the Triton kernels run on cuda, not on {device} (only with TRITON_INTERPRET=1, for tests);"
            f" use {ENVIRONMENT}=auto"
        )


def _implementation(device: torch.device, dtype: torch.dtype) -> ModuleType:
    match chosen(device, dtype).name:
        case KernelChoice.NATIVE:
            return native
        case KernelChoice.TRITON:
            from lowmem.kernels import triton_perturb

            return triton_perturb
    return reference


def direction(
    shape: Sequence[int], key: int, kind: Kind, *, rows: Rows = None, device: torch.device | None = None
) -> Tensor:
    """The direction z of a parameter of `shape`, fp32; see `noise.direction`."""
    where = rows.device if isinstance(rows, Tensor) else device or torch.get_default_device()
    module = _implementation(where, torch.float32)
    result: Tensor = module.direction(shape, key, kind, rows=rows, device=where)
    return result


def perturbed(
    weight: Tensor, key: int, eps: float, kind: Kind, *, rows: Rows = None, out: Tensor | None = None
) -> Tensor:
    """`round(W + fl(eps * z))`, new or in `out`; see `reference.perturbed`."""
    module = _implementation(weight.device, weight.dtype)
    result: Tensor = module.perturbed(weight, key, eps, kind, rows=rows, out=out)
    return result


def perturbed_pair(weight: Tensor, key: int, eps: float, kind: Kind) -> tuple[Tensor, Tensor]:
    """`perturbed` with +eps and with -eps, the noise drawn once."""
    module = _implementation(weight.device, weight.dtype)
    result: tuple[Tensor, Tensor] = module.perturbed_pair(weight, key, eps, kind)
    return result


def update_(
    weight: Tensor, terms: Sequence[tuple[int, float]], kind: Kind, *, rounding_key: int, decay: float = 0.0
) -> None:
    """In place `W <- round(W (1 - decay) - sum_j coef_j z_j)`, in one pass; see `reference.update_`."""
    module = _implementation(weight.device, weight.dtype)
    module.update_(weight, terms, kind, rounding_key=rounding_key, decay=decay)


def replay_(weight: Tensor, updates: Sequence[Update], kind: Kind, *, decay: float = 0.0) -> None:
    """In place each of `updates` (terms, rounding key) in order, bit for bit as calls of `update_` would."""
    module = _implementation(weight.device, weight.dtype)
    module.replay_(weight, updates, kind, decay=decay)
