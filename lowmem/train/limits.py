"""Staying inside the memory budget while training: a limit that raises, and what is given up, in order, when it does.

Every concession is lossless: the effective batch, its order, the step and the data position stay the same, so the loss
curve is that of a run that had started with the smaller micro-batch.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from lowmem.methods.base import Method
from lowmem.plan.tracker import OPTIMIZER, LiveBytes
from lowmem.units import format_bytes

HALVINGS = 3


class TensorBudgetExceeded(Exception):
    """Live tensors outgrew the budget. Raised on a CPU, where no allocator enforces one."""


MEMORY_ERRORS = (TensorBudgetExceeded, torch.OutOfMemoryError)

Concession = Callable[[], str | None]
"""Gives something up and says what, or returns None when it has nothing (more) to give."""


class MemoryLimit(Protocol):
    """What the loop asks for: a guard around a step, and the next concession after it failed."""

    def guard(self) -> Any:
        """A context in which exceeding the budget raises one of `MEMORY_ERRORS`."""
        ...

    def concede(self) -> str | None:
        """Gives up the next thing and says what it was; None when nothing is left."""
        ...


class StepLimit:
    """The budget of a run on its device, and its ladder of concessions.

    On a CPU the tensors are counted, at a dispatch per operation, only when `budget` is given. On a GPU the CUDA
    allocator enforces `budget` (and, without one, the size of the card).
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        *,
        budget: int | None,
        device: torch.device,
        concessions: Sequence[Concession],
    ) -> None:
        self._concessions = list(concessions)
        self._device = device
        self._counter: _Counter | None = None
        if budget is not None and device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, budget / total), device)
        elif budget is not None:
            self._counter = _Counter(budget)
            for name, tensor in method.state().tensors.items():
                if name.startswith("state/"):
                    self._counter.track(tensor, OPTIMIZER)
            self._counter.track_module(model)

    @contextmanager
    def guard(self) -> Iterator[None]:
        if self._counter is None:
            yield
        else:
            with self._counter.armed(), self._counter:
                yield

    def concede(self) -> str | None:
        gc.collect()  # a failed backward leaves its graph in cycles
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        while self._concessions:
            given = self._concessions[0]()
            if given is not None:
                return given
            self._concessions.pop(0)
        return None


class _Counter(LiveBytes):  # type: ignore[no-untyped-call]
    """Counts live tensors and raises as soon as they exceed `budget`."""

    def __init__(self, budget: int) -> None:
        super().__init__()
        self._budget, self._armed = budget, False

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Only inside does it raise: what is alive before a step is counted in silence."""
        self._armed = True
        try:
            yield
        finally:
            self._armed = False

    def _add(self, storage: Any, component: str) -> None:
        super()._add(storage, component)
        if self._armed and self.current > self._budget:
            bill = ", ".join(f"{name} {format_bytes(nbytes)}" for name, nbytes in self.components.items())
            raise TensorBudgetExceeded(
                f"live tensors need {format_bytes(self.current)} of a budget of {format_bytes(self._budget)} ({bill})"
            )


class Halvings:
    """A concession: the micro-batch is halved, at most `HALVINGS` times; accumulation makes up for it."""

    def __init__(self, halve: Callable[[], int | None]) -> None:
        self._halve, self._left = halve, HALVINGS

    def __call__(self) -> str | None:
        size = self._halve() if self._left else None
        if size is None:
            return None
        self._left -= 1
        return f"micro-batches of at most {size}, more of them per step; the effective batch stays the same"
