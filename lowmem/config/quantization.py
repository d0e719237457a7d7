"""How the frozen base is stored while adapters train on it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lowmem.config.base import Section


class NoQuantization(Section):
    """The base keeps the run's dtype."""

    kind: Literal["none"] = "none"


class Nf4(Section):
    """4-bit NormalFloat through bitsandbytes (QLoRA)."""

    kind: Literal["nf4"] = "nf4"
    double_quant: bool = True


class Int8(Section):
    """8-bit integers through bitsandbytes."""

    kind: Literal["int8"] = "int8"


Quantization = Annotated[NoQuantization | Nf4 | Int8, Field(discriminator="kind")]
