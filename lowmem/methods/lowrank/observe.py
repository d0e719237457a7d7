"""What passes through an adapter in one step: inputs x and output gradients s, as sums of squares or as rows.

A probe sits on the adapter's output as an identity and keeps x the way autograd keeps activations. So it meets x and s
together, once per backward pass: under activation checkpointing x is recomputed like every other activation, and a
forward that runs twice counts once. Without checkpointing x is the tensor that `lora_A` keeps anyhow, not a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowmem.methods.lowrank.pair import Pair

Observation = Literal["nothing", "squares", "rows"]
ROUNDING = 1e-6
"""Share of a micro-batch's longest row below which a row counts as zero. A first token attends to itself alone, so its
query has no gradient but rounding: whether that is exactly zero must not decide about the number of rows."""
Sink = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class Squares:
    """Sums over rows that have a gradient beyond rounding: of x^2 (n,), of s^2 (m,), and their number, a scalar."""

    inn: Tensor
    out: Tensor
    count: Tensor


@dataclass
class Observed:
    """One adapter over the micro-batches of one step. s is the gradient at the *layer's* output, without alpha / r."""

    squares: Squares | None = None
    rows: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """(x (N, n), s (N, m)) of every micro-batch, where rows are kept."""

    def all_rows(self) -> tuple[Tensor, Tensor]:
        """x (N, n) and s (N, m) of the whole effective batch."""
        x, s = (torch.cat(side) for side in zip(*self.rows, strict=True))
        return x, s

    def add_squares(self, x: Tensor, s: Tensor) -> None:
        """`squares` grow by one micro-batch."""
        lengths = torch.linalg.vector_norm(s, dim=1)
        alive = (lengths > ROUNDING * lengths.max()).to(x.dtype)
        new = Squares(alive @ x.square(), torch.linalg.vector_norm(s, dim=0).square(), alive.sum())
        old = self.squares
        if old is not None:
            new = Squares(old.inn + new.inn, old.out + new.out, old.count + new.count)
        self.squares = new


class Observer:
    """Watches `pairs` whenever `watching()` is entered; nothing is attached outside of it."""

    def __init__(self, pairs: Sequence[Pair], what: Observation) -> None:
        self._pairs, self._what = pairs, what

    @contextmanager
    def watching(self) -> Iterator[dict[str, Observed]]:
        """Inside, every backward pass adds to what is yielded, by the pair's name."""
        observed = {pair.name: Observed() for pair in self._pairs}
        handles: list[Any] = []
        if self._what != "nothing":
            for pair in self._pairs:
                handles += _attach(pair, self._sink(pair, observed[pair.name]))
        try:
            yield observed
        finally:
            for handle in handles:
                handle.remove()

    def _sink(self, pair: Pair, observed: Observed) -> Sink:
        def sink(x: Tensor, gradient: Tensor) -> None:
            rows, s = x.detach().flatten(0, -2), gradient.flatten(0, -2) / pair.scale
            observed.add_squares(rows, s)
            if self._what == "rows":
                observed.rows.append((rows, s))

        return sink


def _attach(pair: Pair, sink: Sink) -> list[Any]:
    """Hooks on both halves of the adapter; x travels from the first to the second within one forward."""
    passing: list[Tensor] = []

    def enter(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        passing.append(inputs[0])

    def leave(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        x = passing.pop()
        probed: Tensor = _Probe.apply(output, x, sink)  # type: ignore[no-untyped-call]
        return probed

    return [pair.first.register_forward_pre_hook(enter), pair.second.register_forward_hook(leave)]


class _Probe(torch.autograd.Function):
    """The identity; its backward shows x and the gradient to `sink`."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, sink: Sink) -> Tensor:
        ctx.save_for_backward(x)
        ctx.sink = sink
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        ctx.sink(x, gradient)
        return gradient, None, None
