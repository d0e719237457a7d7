"""What preparing a model for a kind of training leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Prepared:
    """The title of the kind of training, and how its result is written."""

    title: str
    exporter: Callable[[Path], None]
