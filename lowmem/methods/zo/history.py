"""Momentum without memory: the last slopes with the names of their directions, which are drawn again when needed.

    G_t = (1 - beta) sum_{i > t - H} beta^(t - i) rho_i z_i

is the exponential average of the last H steps' gradient estimates, cut after H; no tensor is kept. It costs H passes
of the noise generator at every update instead of one.
"""

from __future__ import annotations

from collections.abc import Sequence

from lowmem.methods.zo.perturb import Direction

DEFAULT_MOMENTUM = 0.9
DEFAULT_WINDOW = 16
"""1 - 0.9^16: four fifths of an endless average's weight."""


class History:
    """`window` steps of (direction, slope), the newest last."""

    def __init__(self, momentum: float, window: int) -> None:
        self._momentum, self._window = momentum, window
        self._entries: list[tuple[int, int, float]] = []

    def add(self, step: int, slopes: Sequence[tuple[Direction, float]]) -> None:
        """The slopes measured in `step`; those of `step` - window and before are forgotten."""
        kept = [entry for entry in self._entries if entry[0] > step - self._window]
        self._entries = kept + [(z.step, z.probe, slope) for z, slope in slopes]

    def terms(self, step: int) -> tuple[tuple[Direction, float], ...]:
        """G as of `step`, oldest first."""
        return tuple(
            (Direction(at, probe), (1 - self._momentum) * self._momentum ** (step - at) * slope)
            for at, probe, slope in self._entries
        )

    def numbers(self) -> dict[str, float | int | None]:
        flat: dict[str, float | int | None] = {"history": len(self._entries)}
        for i, (at, probe, slope) in enumerate(self._entries):
            flat |= {f"history.{i}.step": at, f"history.{i}.probe": probe, f"history.{i}.slope": slope}
        return flat

    def load_numbers(self, numbers: dict[str, float | int | None]) -> None:
        self._entries = [
            (
                int(numbers[f"history.{i}.step"] or 0),
                int(numbers[f"history.{i}.probe"] or 0),
                float(numbers[f"history.{i}.slope"] or 0.0),
            )
            for i in range(int(numbers["history"] or 0))
        ]
