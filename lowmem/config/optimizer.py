"""The update rule of first-order methods, told apart by `kind`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from lowmem.config.base import Section

Fraction = Annotated[float, Field(ge=0, lt=1)]
Betas = tuple[Fraction, Fraction]
Scale = Literal["rms", "aspect", "operator"]
Others = Literal["adamw", "signum"]


class AdamW(Section):
    """AdamW with decoupled weight decay. State: two numbers per trained parameter."""

    kind: Literal["adamw"] = "adamw"
    betas: Betas = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0


class Sgd(Section):
    """Gradient descent with optional momentum. State: nothing, or one number per trained parameter."""

    kind: Literal["sgd"] = "sgd"
    momentum: Fraction = 0.0
    weight_decay: NonNegativeFloat = 0.0


class Lion(Section):
    """Sign of momentum and gradient mixed. State: one number per trained parameter. Wants a learning rate
    3-10x below adamw's."""

    kind: Literal["lion"] = "lion"
    betas: Betas = (0.9, 0.99)
    """Weight of the past in the direction, and in the momentum."""
    weight_decay: NonNegativeFloat = 0.0


class Signum(Section):
    """Sign of the momentum. State: one number per trained parameter, none with momentum: 0. Wants a learning rate 3-10x
    below adamw's."""

    kind: Literal["signum"] = "signum"
    momentum: Fraction = 0.9
    """Weight of the past in the moving average of gradients."""
    weight_decay: NonNegativeFloat = 0.0


class StoSign(Section):
    """Random signs whose mean is the scaled momentum (StoSignSGD, reconstructed). State: two numbers per trained
    parameter."""

    kind: Literal["stosign"] = "stosign"
    momentum: Fraction = 0.9
    """Weight of the past in the moving average of gradients."""
    envelope_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Below 1, old outliers stop making the signs noisier; 1 is as published."""
    weight_decay: NonNegativeFloat = 0.0


class Muon(Section):
    """Momentum with equal singular values on hidden matrices. State: one number per matrix entry."""

    kind: Literal["muon"] = "muon"
    momentum: Fraction = 0.95
    """Weight of the past in the moving average of gradients."""
    nesterov: bool = True
    """Look one step ahead of the momentum."""
    scale: Scale = "rms"
    """rms: learning rates of adamw fit. aspect: as Muon was published, wants about 0.02. operator: unit norm."""
    ns_steps: PositiveInt = 5
    """Newton-Schulz iterations: more = singular values more equal, slower."""
    others: Others = "adamw"
    """The rule of vectors, embeddings and output heads."""
    weight_decay: NonNegativeFloat = 0.0


class LionMuon(Section):
    """Muon every `period` steps, sign steps between: cheaper than muon. State: one number per matrix entry."""

    kind: Literal["lionmuon"] = "lionmuon"
    betas: Betas = (0.9, 0.99)
    """Weight of the past in the direction, and in the momentum."""
    period: PositiveInt = 2
    """A spectral step every this many; 1 = always."""
    sign_lr_ratio: PositiveFloat = 0.05
    """Learning rate of the sign steps, relative to learning_rate."""
    scale: Scale = "rms"
    """As for muon."""
    ns_steps: PositiveInt = 5
    """Newton-Schulz iterations: more = singular values more equal, slower."""
    others: Others = "adamw"
    """The rule of vectors, embeddings and output heads."""
    weight_decay: NonNegativeFloat = 0.0


class SignMuon(Section):
    """lionmuon with one momentum for both betas. State: one number per matrix entry."""

    kind: Literal["signmuon"] = "signmuon"
    momentum: Fraction = 0.95
    """Weight of the past in the moving average of gradients."""
    period: PositiveInt = 2
    """A spectral step every this many; 1 = always."""
    sign_lr_ratio: PositiveFloat = 0.05
    """Learning rate of the sign steps, relative to learning_rate."""
    scale: Scale = "rms"
    """As for muon."""
    ns_steps: PositiveInt = 5
    """Newton-Schulz iterations: more = singular values more equal, slower."""
    others: Others = "adamw"
    """The rule of vectors, embeddings and output heads."""
    weight_decay: NonNegativeFloat = 0.0


Optimizer = Annotated[AdamW | Sgd | Lion | Signum | StoSign | Muon | LionMuon | SignMuon, Field(discriminator="kind")]
