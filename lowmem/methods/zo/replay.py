"""The whole training run as a list of scalars: (step, direction, coefficient) for every term of every update.

Applied to the initial weights in order, it reproduces the final weights exactly, because directions and rounding noise
are functions of the run's seed. 16 bytes a term, the coefficient as the fp32 number that the update multiplied by:
the cheapest possible checkpoint of a zeroth-order run.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor

from lowmem.errors import CheckpointError
from lowmem.kernels.noise import fp32
from lowmem.methods.zo.perturb import Direction, Perturber

STEPS_PER_PASS = 64
"""Updates that one pass over the weights makes when a log is replayed."""

_Entry = tuple[int, int, int, float]


class ReplayLog:
    """Append-only; `state` is two tensors."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, step: int, terms: list[tuple[Direction, float]]) -> None:
        self._entries += [(step, direction.step, direction.probe, fp32(coef)) for direction, coef in terms]

    def state(self) -> dict[str, Tensor]:
        """`steps` (N, 3) int32: update step, direction step, probe; `coefs` (N,) fp32."""
        steps = torch.tensor([entry[:3] for entry in self._entries], dtype=torch.int32).reshape(-1, 3)
        return {"steps": steps, "coefs": torch.tensor([entry[3] for entry in self._entries], dtype=torch.float32)}

    def load(self, steps: Tensor, coefs: Tensor) -> None:
        self._entries = _entries(steps, coefs)

    def replay(self, perturber: Perturber, *, start: int = 0) -> None:
        """Every logged update, from entry `start` on, is applied to the perturber's weights, in order."""
        updates = [
            (step, [(Direction(at, probe), coef) for _, at, probe, coef in entries])
            for step, entries in groupby(self._entries[start:], key=lambda entry: entry[0])
        ]
        for first in range(0, len(updates), STEPS_PER_PASS):
            perturber.replay_(updates[first : first + STEPS_PER_PASS])

    def catch_up(self, perturber: Perturber, steps: Tensor, coefs: Tensor) -> None:
        """From weights at the end of this log, the perturber's weights reach the end of the saved one, which this log
        then is. Raises `CheckpointError` when the saved log does not begin with this one."""
        saved, known = _entries(steps, coefs), len(self._entries)
        if saved[:known] != self._entries:
            raise CheckpointError(
                "the checkpoint's replay log does not begin with the updates that were made so far, so these weights "
                "cannot be brought to it; load the run's model anew, or resume from a full snapshot"
            )
        self._entries = saved
        self.replay(perturber, start=known)


def _entries(steps: Tensor, coefs: Tensor) -> list[_Entry]:
    return list(_rows(steps, coefs))


def _rows(steps: Tensor, coefs: Tensor) -> Iterator[_Entry]:
    for (step, at, probe), coef in zip(steps.tolist(), coefs.tolist(), strict=True):
        yield step, at, probe, coef
