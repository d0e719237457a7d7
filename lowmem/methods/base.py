"""What every training method is: it owns its step, the loop owns everything else.

Zeroth-order methods call the loss several times without gradients, first-order methods call backward; none of it is
visible to the loop. All micro-batches of a step come in together, so accumulation is the method's job. The learning
rate is an argument, so there is no scheduler to fall out of step. Every random draw is derived from (run seed, step,
parameter name), so there is no generator state to save.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor

from lowmem.data.batch import Batch
from lowmem.models.loss import LossFn


@dataclass(frozen=True)
class StepReport:
    """What happened in one step. `loss` is the weighted mean before the update (of the probes, for ZO)."""

    loss: float
    details: dict[str, float] = field(default_factory=dict)
    skipped: bool = False
    """True when a non-finite loss or gradient made the method leave the weights alone."""


@dataclass(frozen=True)
class MethodState:
    """Everything needed to continue: tensors (safetensors) and plain numbers (JSON). Tensors are not copies."""

    tensors: dict[str, Tensor]
    numbers: dict[str, float | int | None]


class Method(Protocol):
    """A training method attached to one model."""

    @property
    def title(self) -> str:
        """What people read: "LoRA r=8 + AdamW", "AdaNAGED-R (reconstruction)"."""
        ...

    @property
    def trainable(self) -> dict[str, Tensor]:
        """Trained tensors by canonical checkpoint name, ties once."""
        ...

    def step(self, loss_fn: LossFn, micro_batches: Sequence[Batch], *, lr: float, step: int) -> StepReport:
        """Update the weights from one effective batch. `step` counts from 0 and seeds every random draw.

        Raises `NonFiniteError` after five consecutive skipped steps.
        """
        ...

    def rehearse(self, loss_fn: LossFn, micro_batches: Sequence[Batch]) -> None:
        """Needs the activations of a step over these batches and leaves everything, gradients too, as it was.

        Run on the longest batch before the first step, so that a run that does not fit fails at once.
        """
        ...

    def state(self) -> MethodState:
        """Trained tensors and optimizer state."""
        ...

    def load_state(self, state: MethodState) -> None:
        """Continue from `state`. Raises `CheckpointError` naming the first missing, extra or misshaped tensor."""
        ...

    def export(self, folder: Path) -> None:
        """Write what was trained in the format other tools read: a peft adapter, or a transformers folder."""
        ...
