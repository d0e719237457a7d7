"""The whole training run as a list of scalars: (step, direction, coefficient) for every term of every update.

Applied to the initial weights in order, it reproduces the final weights exactly, because directions and rounding noise
are functions of the run's seed. 16 bytes a term, the coefficient as the fp32 number that the update multiplied by:
the cheapest possible checkpoint of a zeroth-order run. The terms of an update whose form is not their sum are followed
by one more entry: top_k where directions have their step, -1 - the form's number where they have their probe, and the
form's length where they have their coefficient.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor

from lowmem.errors import CheckpointError
from lowmem.kernels.noise import fp32
from lowmem.methods.zo.form import KINDS, Form
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

    def append(self, step: int, terms: list[tuple[Direction, float]], form: Form | None = None) -> None:
        self._entries += [(step, direction.step, direction.probe, fp32(coef)) for direction, coef in terms]
        if form is not None:
            self._entries.append((step, form.top_k, -1 - KINDS.index(form.kind), fp32(form.length)))

    def state(self) -> dict[str, Tensor]:
        """`steps` (N, 3) int32: update step, direction step, probe; `coefs` (N,) fp32."""
        steps = torch.tensor([entry[:3] for entry in self._entries], dtype=torch.int32).reshape(-1, 3)
        return {"steps": steps, "coefs": torch.tensor([entry[3] for entry in self._entries], dtype=torch.float32)}

    def load(self, steps: Tensor, coefs: Tensor) -> None:
        self._entries = _entries(steps, coefs)

    def replay(self, perturber: Perturber, *, start: int = 0) -> None:
        """Every logged update, from entry `start` on, is applied to the perturber's weights, in order."""
        plain: list[tuple[int, list[tuple[Direction, float]]]] = []
        for step, group in groupby(self._entries[start:], key=lambda entry: entry[0]):
            terms, form = _update(list(group))
            if form is None:
                plain.append((step, terms))
            if plain and (form is not None or len(plain) == STEPS_PER_PASS):
                perturber.replay_(plain)
                plain = []
            if form is not None:
                perturber.move_(terms, step=step, form=form)
        if plain:
            perturber.replay_(plain)

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


def _update(entries: list[_Entry]) -> tuple[list[tuple[Direction, float]], Form | None]:
    """The terms of one update, and the form of their sum where it has one."""
    terms = [(Direction(at, probe), coef) for _, at, probe, coef in entries if probe >= 0]
    forms = [Form(KINDS[-1 - probe], coef, at) for _, at, probe, coef in entries if probe < 0]
    return terms, forms[0] if forms else None


def _entries(steps: Tensor, coefs: Tensor) -> list[_Entry]:
    return list(_rows(steps, coefs))


def _rows(steps: Tensor, coefs: Tensor) -> Iterator[_Entry]:
    for (step, at, probe), coef in zip(steps.tolist(), coefs.tolist(), strict=True):
        yield step, at, probe, coef
