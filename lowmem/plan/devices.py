"""What a device takes besides tensors: one table, each number with its source.

Nothing here is fitted to a memory figure that the planner is compared with.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from lowmem.errors import ConfigError
from lowmem.units import parse_bytes

MIB = 2**20
GIB = 2**30


@dataclass(frozen=True)
class DeviceCosts:
    """Bytes. `base`: taken before the first tensor. `adapters`: besides, by the library for adapters.

    `workspace`: buffers inside operations. `retained`: freed memory that the allocator keeps, beyond the margin.
    `granularity`: its rounding. `margin`: share of the tensors' peak that a row must leave free to count as "fits"
    rather than "tight".
    """

    kind: Literal["cuda", "cpu"]
    base: int
    adapters: int
    workspace: int
    retained: int
    granularity: int
    margin: float
    sources: tuple[str, ...]


CUDA = DeviceCosts(
    kind="cuda",
    base=650 * MIB,
    adapters=0,
    workspace=32 * MIB,
    retained=0,
    granularity=512,
    margin=0.05,
    sources=(
        "base 650 MiB, CUDA context and kernels of torch: what the estimator gpu_poor counts; drivers and cards span "
        "about 300 to 1400 MiB. Not measured by us: no GPU.",
        "workspace 32 MiB, cuBLAS: the default CUBLAS_WORKSPACE_CONFIG of torch on Hopper (:4096:8), the largest one.",
        "granularity 512 B: kMinBlockSize of torch's CUDACachingAllocator.",
        "margin 5 %: fragmentation of that allocator, whose large segments come in steps of 2 MiB (20 MiB for blocks "
        "of 1 to 10 MiB). An assumption; not measured by us.",
    ),
)
CPU = DeviceCosts(
    kind="cpu",
    base=425 * MIB,
    adapters=55 * MIB,
    workspace=32 * MIB,
    retained=192 * MIB,
    granularity=1,
    margin=0.05,
    sources=(
        "base 425 MiB, resident memory of Python 3.11 with torch 2.13 (CPU build), transformers 5.23 and lowmem "
        "imported: measured, 422 MiB; adapters 55 MiB, what importing peft 0.21 adds: measured.",
        "workspace 32 MiB, memory inside operations (repacked operands): a run of LoRA with 186 MiB of tensors had 501 "
        "MiB more resident, of which base and adapters explain 480.",
        "retained 192 MiB, freed blocks below 32 MiB that glibc keeps: the same run had 723 MiB more without "
        "MALLOC_MMAP_THRESHOLD_=131072. It depends on the run; 25 to 220 MiB were seen.",
    ),
)


@dataclass(frozen=True)
class Device:
    """Where a run is to take place and how much memory it has there; None when that is not known."""

    costs: DeviceCosts
    total: int | None

    def bill(self, tensors: int, *, adapters: bool = False) -> int:
        """Bytes of the device for a peak of `tensors` bytes."""
        own = self.costs.base + self.costs.workspace + self.costs.retained
        return own + (self.costs.adapters if adapters else 0) + tensors

    def margin(self, tensors: int) -> int:
        return round(self.costs.margin * tensors)


def parse_device(text: str) -> Device:
    """`cpu`, `cuda`, `cuda:24GiB` or `cpu:16GiB`. Raises `ConfigError` for anything else."""
    match = re.fullmatch(r"(cpu|cuda)(?::(.+))?", text)
    if match is None:
        raise ConfigError(f"--device {text!r} is no device; write cpu, cpu:16GiB, cuda or cuda:24GiB")
    costs = CUDA if match[1] == "cuda" else CPU
    return Device(costs, parse_bytes(match[2]) if match[2] else None)
