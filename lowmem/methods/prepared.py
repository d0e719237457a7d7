"""What preparing a model for a kind of training leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lowmem.methods.layout import Layout, Whole


@dataclass(frozen=True)
class Prepared:
    """The title of the kind of training, how its result is written, and where its parameters are."""

    title: str
    exporter: Callable[[Path], None]
    layout: Layout = field(default_factory=Whole)
