"""One matrix trained through a low-rank basis: gathers coordinates (and a sketch where one is due), then moves.

    low rank    C = sum over micro-batches of P'g / (1 - q)       W += gain P step(C)
    full rank   G = sum of g, residual (G - P P'G) / q            W += gain step(residual)        (GUM's drawn layers)

`step` is what an update rule makes of a gradient: the rule moves a matrix of zeros, so any rule serves, and its
state has the shape of what it sees. Gathered between micro-batches: C, 4 r l bytes in fp32; for a drawn layer its
whole gradient; at a refresh the sketch, 4 s (r + p) bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lowmem.kernels.noise import stream_key
from lowmem.methods.projected.basis import (
    OVERSAMPLING,
    coordinates,
    leading_basis,
    move_,
    random_basis,
    shorter_first,
    sketch_matrix,
    stored,
    subtract_projection_,
)
from lowmem.methods.projected.draw import Draw, layer_of, looks
from lowmem.methods.rules.base import Rule


@dataclass(frozen=True)
class Branches:
    """What becomes of coordinates, and of the residuals of drawn layers.

    `gain` and `full_gain` multiply the steps. `forgets`: a new basis starts with fresh state (GUM); GaLore's keeps what
    the old basis left. `full_rule` makes the rule of drawn layers from their weight decay; None where none is drawn.
    """

    rule: Rule
    gain: float = 1.0
    forgets: bool = False
    full_rule: Callable[[float], Rule] | None = None
    full_gain: float = 1.0


@dataclass(frozen=True)
class Projection:
    """What all matrices of a method share. `dtype` is that of the bases; the rules know their own."""

    rank: int
    period: int
    branches: Branches
    draw: Draw
    dtype: torch.dtype
    seed: int
    weight_decay: float = 0.0


class ProjectedMatrix:
    """A `TensorUpdate`; `index` of `count` matrices places its refreshes within the period."""

    compact = True

    def __init__(self, weight: Tensor, name: str, shared: Projection, *, index: int, count: int) -> None:
        self._weight, self._name, self._shared = weight, name, shared
        self._layer, self._index, self._count = layer_of(name), index, count
        self._short, self._long = sorted(weight.shape)
        self._rank = min(shared.rank, self._short)
        self._full = False
        self._slots: dict[str, Tensor] = {}
        self._sketch: Tensor | None = None
        self._gathered: Tensor | None = None
        self._update = 0
        key = stream_key(shared.seed, 0, 0, name, "first basis")
        first = random_basis(self._short, self._rank, key=key, device=weight.device)
        self._basis = stored(first, shared.dtype, key)
        self.open(0)

    @property
    def gathered(self) -> bool:
        return self._gathered is not None

    @property
    def basis(self) -> Tensor:
        """P (s, r) of the next update."""
        return self._basis

    @property
    def full(self) -> bool:
        """Whether the next update has full rank."""
        return self._full

    def gather(self, grad: Tensor) -> None:
        g = shorter_first(grad)
        if self._due and not self._full:
            thin = (g @ self._sketch_matrix().to(g.dtype)).float()
            self._sketch = thin if self._sketch is None else self._sketch.add_(thin)
        new = grad if self._full else coordinates(self._basis, g)
        self._gathered = new if self._gathered is None else self._gathered.add_(new)

    def exchange(self, sum_: Callable[[Tensor], None]) -> None:
        if self._gathered is None:
            like = self._weight.dtype if self._full else torch.float32
            shape = self._weight.shape if self._full else (self._rank, self._long)
            self._gathered = torch.zeros(shape, dtype=like, device=self._weight.device)
        sum_(self._gathered)
        if self._due and not self._full:
            thin = (self._short, self._sketch_width)
            self._sketch = self._gathered.new_zeros(thin) if self._sketch is None else self._sketch
            sum_(self._sketch)

    def norm(self) -> Tensor:
        if self._gathered is None:
            return torch.zeros((), dtype=torch.float32, device=self._weight.device)
        norm: Tensor = self._gathered.norm(dtype=torch.float32)
        return norm

    def apply_(self, *, factor: float, lr: float, update: int, key: int) -> None:
        gathered, self._gathered = self._gathered, None
        if gathered is None:
            return
        if self._full:
            if self._due:
                self._sketch = (shorter_first(gathered) @ self._sketch_matrix().to(gathered.dtype)).float()
            self._apply_full(gathered, factor, lr=lr, update=update, key=key)
        else:
            self._apply_low(gathered, factor, lr=lr, update=update, key=key)
        if self._sketch is not None:
            self._take_basis(key)

    def drop(self) -> None:
        self._gathered = self._sketch = None

    def close(self, update: int) -> None:
        if self._shared.draw.full(self._layer, update) != self._full:
            self._slots = {}

    def open(self, update: int) -> None:
        full = self._shared.draw.full(self._layer, update)
        if full != self._full or not self._slots:
            shape = self._weight.shape if full else (self._rank, self._long)
            # The rule sees only a shape, dtype and device; nothing of this size is filled in.
            like = self._weight.new_empty(1, dtype=torch.float32).expand(shape)
            self._slots = self._rule_of(full).init(like)
        self._full, self._update = full, update

    def state(self) -> dict[str, Tensor]:
        return {"basis": self._basis, **self._slots}

    @property
    def _due(self) -> bool:
        return looks(self._update, index=self._index, count=self._count, period=self._shared.period)

    @property
    def _sketch_width(self) -> int:
        return min(self._rank + OVERSAMPLING, self._short)

    def _rule_of(self, full: bool) -> Rule:
        branches = self._shared.branches
        if not full:
            return branches.rule
        assert branches.full_rule is not None, "a layer was drawn without a rule for it"
        # The rate is multiplied by the gain, the decay of the weight is not.
        return branches.full_rule(self._shared.weight_decay / branches.full_gain)

    def _apply_low(self, coords: Tensor, factor: float, *, lr: float, update: int, key: int) -> None:
        shared = self._shared
        if (scale := factor / (1 - shared.draw.share)) != 1.0:
            coords.mul_(scale)
        step = torch.zeros_like(coords)
        shared.branches.rule.update_(step, coords, self._slots, lr=lr, t=update + 1, rounding_key=key)
        if shared.branches.gain != 1.0:
            step.mul_(shared.branches.gain)
        move_(shorter_first(self._weight), self._basis, step, keep=1 - lr * shared.weight_decay, key=key)

    def _apply_full(self, grad: Tensor, factor: float, *, lr: float, update: int, key: int) -> None:
        g, shared = shorter_first(grad), self._shared
        subtract_projection_(g, self._basis, coordinates(self._basis, g)).mul_(factor / shared.draw.share)
        rate = lr * shared.branches.full_gain
        self._rule_of(True).update_(self._weight, grad, self._slots, lr=rate, t=update + 1, rounding_key=key)

    def _sketch_matrix(self) -> Tensor:
        """The same for every micro-batch of an update."""
        key = stream_key(self._shared.seed, self._update, 0, self._name, "sketch")
        average = self._slots.get("exp_avg")  # not every rule keeps one, and some keep it as codes
        readable = average is not None and average.is_floating_point() and average.shape == (self._rank, self._long)
        momentum = average if readable and self._update > 0 and not self._full else None
        return sketch_matrix(momentum, long=self._long, width=self._sketch_width, key=key, device=self._weight.device)

    def _take_basis(self, key: int) -> None:
        sketch, self._sketch = self._sketch, None
        assert sketch is not None
        found = leading_basis(sketch, self._rank)
        self._basis.copy_(stored(found, self._shared.dtype, stream_key(key, 0, 0, "", "basis")))
        if self._shared.branches.forgets and not self._full:
            for slot in self._slots.values():
                slot.zero_()
