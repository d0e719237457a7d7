"""The update rule of first-order methods, told apart by `kind`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from lowmem.config.base import Section

Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Betas = tuple[Fraction, Fraction]
Scale = Literal["rms", "aspect", "operator"]
Others = Literal["adamw", "signum"]


class AdamW(Section):
    """AdamW with decoupled weight decay. State: two numbers per trained parameter."""

    kind: Literal["adamw"] = "adamw"
    betas: Betas = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0


class AdamW8bit(Section):
    """AdamW with its state in 8 bits: a quarter of adamw's."""

    kind: Literal["adamw8bit"] = "adamw8bit"
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


class SoftSignum(Section):
    """Signum whose sign becomes a tanh at the end of the run. State: one number per trained parameter. Needs max_steps;
    learning rates are signum's."""

    kind: Literal["softsignum"] = "softsignum"
    momentum: Fraction = 0.9
    """Weight of the past in the moving average of gradients."""
    hard_fraction: Share = 0.9
    """Share of the updates that are plain signs; 1 = all."""
    tau_max: Annotated[float, Field(ge=1)] = 20.0
    """Steepest tanh: averages far below 1 / tau_max move in proportion to their size."""
    weight_decay: NonNegativeFloat = 0.0


class Adafactor(Section):
    """Adam's second moment as a row times a column, no momentum. State: next to nothing."""

    kind: Literal["adafactor"] = "adafactor"
    decay: Annotated[float, Field(lt=0)] = -0.8
    """The past weighs 1 - t^decay at update t: closer to 0 = shorter memory."""
    clip: PositiveFloat = 1.0
    """Largest root mean square of a step, in learning rates."""
    relative: bool = False
    """Multiply the learning rate by each tensor's root mean square, as published; wants 1e-3 to 1e-2."""
    eps: PositiveFloat = 1e-3
    """Smallest root mean square of a tensor that `relative` assumes."""
    weight_decay: NonNegativeFloat = 0.0


class OfMatrices(Section):
    """What rules of hidden matrices share."""

    others: Others = "adamw"
    """The rule of vectors, embeddings and output heads."""
    weight_decay: NonNegativeFloat = 0.0


class RowMax(OfMatrices):
    """One entry of each row moves: the largest of the momentum (reconstructed). State: one number per matrix entry."""

    kind: Literal["rowmax"] = "rowmax"
    momentum: Fraction = 0.95
    """Weight of the past in the moving average of gradients."""
    side: Literal["row", "column"] = "row"


class Spectral(OfMatrices):
    """What rules share that make singular values equal."""

    scale: Scale = "rms"
    """rms: learning rates of adamw fit. aspect: as Muon was published, wants about 0.02. operator: unit norm."""
    ns_steps: PositiveInt = 5
    """Newton-Schulz iterations: more = singular values more equal, slower."""


class Muon(Spectral):
    """Momentum with equal singular values on hidden matrices. State: one number per matrix entry."""

    kind: Literal["muon"] = "muon"
    momentum: Fraction = 0.95
    """Weight of the past in the moving average of gradients."""
    nesterov: bool = True
    """Look one step ahead of the momentum."""


class NorMuon(Spectral):
    """Muon with output neurons brought to the same step length (reconstructed). State: one number per matrix entry."""

    kind: Literal["normuon"] = "normuon"
    betas: Betas = (0.95, 0.95)
    """Weight of the past in the moving average of gradients, and in the length of every row's steps."""
    eps: PositiveFloat = 1e-8
    nesterov: bool = True
    """Look one step ahead of the momentum."""


class SoftMuon(Spectral):
    """Muon that gives small singular values small steps at the end of the run. State: one number per matrix entry.
    Needs max_steps."""

    kind: Literal["softmuon"] = "softmuon"
    momentum: Fraction = 0.95
    """Weight of the past in the moving average of gradients."""
    nesterov: bool = True
    """Look one step ahead of the momentum."""
    hard_fraction: Share = 0.9
    """Share of the updates that are Muon's; 1 = all."""
    tau_max: Annotated[float, Field(ge=1)] = 1e9
    """Singular values far below 1 / tau_max move in proportion to their size."""


class LionMuon(Spectral):
    """Muon every `period` steps, sign steps between: cheaper than muon. State: one number per matrix entry."""

    kind: Literal["lionmuon"] = "lionmuon"
    betas: Betas = (0.9, 0.99)
    """Weight of the past in the direction, and in the momentum."""
    period: PositiveInt = 2
    """A spectral step every this many; 1 = always."""
    sign_lr_ratio: PositiveFloat = 0.05
    """Learning rate of the sign steps, relative to learning_rate."""


class SignMuon(Spectral):
    """lionmuon with one momentum for both betas. State: one number per matrix entry."""

    kind: Literal["signmuon"] = "signmuon"
    momentum: Fraction = 0.95
    """Weight of the past in the moving average of gradients."""
    period: PositiveInt = 2
    """A spectral step every this many; 1 = always."""
    sign_lr_ratio: PositiveFloat = 0.05
    """Learning rate of the sign steps, relative to learning_rate."""


Optimizer = Annotated[
    AdamW
    | AdamW8bit
    | Adafactor
    | Sgd
    | Lion
    | Signum
    | StoSign
    | SoftSignum
    | RowMax
    | Muon
    | NorMuon
    | SoftMuon
    | LionMuon
    | SignMuon,
    Field(discriminator="kind"),
]
