"""Configs that ship with the package, by name: `lowmem train tiny-demo`."""

from __future__ import annotations

import os
from pathlib import Path

import lowmem
from lowmem.config.explain import did_you_mean
from lowmem.errors import ConfigError

FOLDER = Path(lowmem.__file__).parent / "presets"


def preset_names() -> tuple[str, ...]:
    """Names of all presets, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def preset_path(name: str) -> Path:
    """The file of a preset. Raises `ConfigError` for a name that is none."""
    names = preset_names()
    if name not in names:
        advice = did_you_mean(name, names) or f"; presets are {', '.join(names)}"
        raise ConfigError(f"{name}: there is neither a file nor a preset of this name{advice}")
    return FOLDER / f"{name}.yaml"


def find_config(name: str) -> Path:
    """The file that `name` means: a path, or else a preset. Raises `ConfigError` with the nearest name."""
    path = Path(name)
    if os.path.exists(path):  # not Path.exists, which fails on names that are too long
        return path
    if path.name != name or path.suffix in (".yaml", ".yml"):
        neighbours = [str(near) for pattern in ("*.yaml", "*.yml") for near in path.parent.glob(pattern)]
        advice = did_you_mean(name, [*neighbours, *preset_names()])
        raise ConfigError(f"{name}: there is no such file{advice or '; `lowmem init > run.yaml` writes one'}")
    return preset_path(name)
