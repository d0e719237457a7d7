"""Function-value problems on plain fp64 vectors, driven exactly as `ZerothOrder` drives a model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lowmem.methods.zo.algorithm import Algorithm, Evaluation, Move
from lowmem.methods.zo.perturb import Direction

Loss = Callable[[np.ndarray, int], np.ndarray]
"""(x, step) -> per-example losses of that step's batch."""


def rademacher(direction: Direction, size: int) -> np.ndarray:
    """+-1, a function of the direction alone."""
    generator = np.random.Generator(np.random.Philox(key=[direction.step, direction.probe]))
    return generator.integers(0, 2, size) * 2.0 - 1.0


class ToyRun:
    """Minimises `loss` from `x` with `algorithm`; counts function calls."""

    def __init__(self, algorithm: Algorithm, loss: Loss, x: np.ndarray) -> None:
        self.algorithm, self.loss, self.x = algorithm, loss, x.copy()
        self.calls = 0

    def step(self, step: int, *, lr: float = 1.0) -> Move:
        def evaluate(direction: Direction | None, eps: float) -> Evaluation:
            self.calls += 1
            at = self.x if direction is None else self.x + eps * rademacher(direction, self.x.size)
            values = self.loss(at, step)
            return Evaluation(tuple(map(float, values)), (1.0,) * len(values))

        move = self.algorithm.step(evaluate, lr=lr, step=step)
        total = sum((coef * rademacher(direction, self.x.size) for direction, coef in move.terms), 0 * self.x)
        self.x = self.x - (total if move.form is None else move.form.length * np.sign(total))
        return move


def quadratic(size: int, *, noise: float = 0.0, seed: int = 0) -> tuple[Loss, np.ndarray]:
    """0.5 x' diag(h) x with a spread of curvatures from 1 to 1/100; `noise` adds a random linear term per example."""
    rng = np.random.default_rng(seed)
    h = np.logspace(0, -2, size)

    def loss(x: np.ndarray, step: int) -> np.ndarray:
        clean = 0.5 * float(h @ (x * x))
        if not noise:
            return np.array([clean] * 4)
        batch = np.random.default_rng([seed, step]).normal(0, noise, (4, size))
        return clean + batch @ x

    return loss, rng.normal(0, 0.1, size)
