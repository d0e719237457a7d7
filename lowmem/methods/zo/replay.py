"""The whole training run as a list of scalars: (step, direction, coefficient) for every term of every update.

Applied to the initial weights in order, it reproduces the final weights exactly, because directions and rounding noise
are functions of the run's seed. 24 bytes a term: the cheapest possible checkpoint of a zeroth-order run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowmem.methods.zo.perturb import Direction, Perturber


class ReplayLog:
    """Append-only; `state` is three tensors."""

    def __init__(self) -> None:
        self._entries: list[tuple[int, int, int, float]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, step: int, terms: list[tuple[Direction, float]]) -> None:
        self._entries += [(step, direction.step, direction.probe, coef) for direction, coef in terms]

    def state(self) -> dict[str, Tensor]:
        """`steps` (N, 3) int64: update step, direction step, probe; `coefs` (N,) fp64."""
        steps = torch.tensor([entry[:3] for entry in self._entries], dtype=torch.int64).reshape(-1, 3)
        return {
            "steps": steps,
            "coefs": torch.tensor([entry[3] for entry in self._entries], dtype=torch.float64),
        }

    def load(self, steps: Tensor, coefs: Tensor) -> None:
        self._entries = [(*row, coef) for row, coef in zip(steps.tolist(), coefs.tolist(), strict=True)]

    def replay(self, perturber: Perturber) -> None:
        """Every logged update is applied to the perturber's weights, in order."""
        position = 0
        while position < len(self._entries):
            step = self._entries[position][0]
            terms = []
            while position < len(self._entries) and self._entries[position][0] == step:
                _, at, probe, coef = self._entries[position]
                terms.append((Direction(at, probe), coef))
                position += 1
            perturber.move_(terms, step=step)
