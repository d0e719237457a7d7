"""The update rule of first-order methods, told apart by `kind`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from lowmem.config.base import Section


class AdamW(Section):
    """AdamW with decoupled weight decay. State: two numbers per trained parameter."""

    kind: Literal["adamw"] = "adamw"
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0


class Sgd(Section):
    """Gradient descent with optional momentum. State: nothing, or one number per trained parameter."""

    kind: Literal["sgd"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: NonNegativeFloat = 0.0


Optimizer = Annotated[AdamW | Sgd, Field(discriminator="kind")]
