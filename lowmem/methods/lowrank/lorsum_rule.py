"""LoRSum as the update rule of adapters (PSI-LoRA; Almansoori et al., arXiv 2602.16456).

Per adapter and step, with G the gradient of the layer's weight, s = alpha / r, metrics R, L of `metric.py` and M_t the
moving average of gradients (with bias correction):

    (A, B) <- LoRSum( B A - (lr / s) R^-1 M_t L^-1 )        in `mode`; see `lorsum.py`

What `lr` means depends on the metric. `tangent` (default) with power 1/2 divides G by the root mean square of its row
and column, and by n: lr is the change of an output in one step relative to the size of the layer's inputs, were all
entries to agree. `kfac` with power 1/2 makes every entry of R^-1 G L^-1 a correlation of an input with an output
gradient: lr is the largest change of an entry of the weight. With `none` it is that of gradient descent.

Modes. `jacobi` (default): both factors at once, from the gradients that autograd gives. `alternating`: one factor per
step, B at odd updates, A at even ones. `gauss_seidel`: B with the new A, `sweeps` times; keeps every adapter's inputs
and output gradients until the update, N (m + n) numbers per layer for N tokens of the effective batch.

Momentum. `factors`: moving averages of B'G and GA', as if the factors stood still. `lowrank`: M itself as a product
of rank r, to which each step adds the gradient by LoRSum; it stays right while the factors turn. Except in
`gauss_seidel`, of G only the part tangent to the rank-r matrices is known.

Damping is damping * (the largest lr so far) times the mean eigenvalue of each Gram matrix. So a step is lr shortened by
1 + damping * lr at the peak of a schedule, never longer than 1 / damping, and keeps the schedule's shape. A peak beyond
that cannot do more harm.

The gradient is clipped by the norm of the tangent part of G over all layers, which does not change when A grows and B
shrinks by the same factor.

State, fp32: 4 r (m + n) momentum and 4 (m + n) metric per adapter, of AdamW's 8 r (m + n): a share of (r + 1) / 2r.
Weight decay and DoRA are not offered. Ours differs from the authors' code: s enters (there alpha = r is assumed),
momentum and metrics are bias-corrected instead of starting at one, damping and metric floor are relative, tokens
without gradient do not count, and the metric `tangent` and its scale are our own. Their results could not be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor

from lowmem.methods.lowrank.lorsum import (
    AtIterate,
    Damping,
    Factors,
    Metric,
    Product,
    Sum,
    Term,
    gauss_seidel,
    jacobi,
    solve_a,
    solve_b,
)
from lowmem.methods.lowrank.metric import (
    Kind,
    Second,
    average_,
    kfac,
    normalised,
    of_product,
    root_mean_square,
    shampoo,
    unit,
)
from lowmem.methods.lowrank.observe import Observation
from lowmem.methods.lowrank.pair import Pair
from lowmem.methods.lowrank.pair_rule import JITTER, NEARLY_NONE, SMALLEST, PairGradient

Mode = Literal["jacobi", "gauss_seidel", "alternating"]
Momentum = Literal["factors", "lowrank"]


@dataclass(frozen=True)
class Lorsum:
    mode: Mode = "jacobi"
    sweeps: int = 1
    metric: Kind = "tangent"
    momentum: float = 0.9
    momentum_form: Momentum = "factors"
    metric_decay: float = 0.9
    power: float = 0.5
    metric_floor: float = 1e-3
    damping: float = 4.0

    @property
    def title(self) -> str:
        return f"LoRSum ({self.mode}, {self.metric})"

    @property
    def observes(self) -> Observation:
        if self.mode == "gauss_seidel" or self.metric == "shampoo":
            return "rows"
        return "squares" if self.metric == "kfac" else "nothing"

    def init(self, pair: Pair) -> dict[str, Tensor]:
        a, b = (p.detach().float() for p in (pair.a, pair.b))
        state = {}
        if self.momentum > 0:
            # M = out inn: the rows of A are as good a start as any, and zero times them is zero.
            state["momentum_inn"] = a.clone() if self._holds_product else torch.zeros_like(a)
            state["momentum_out"] = torch.zeros_like(b)
        if self.metric != "none":
            state["metric_inn"], state["metric_out"] = torch.zeros_like(a[0]), torch.zeros_like(b[:, 0])
        return state

    def update_(
        self, pair: Pair, gradient: PairGradient, state: dict[str, Tensor], *, lr: float, peak: float, t: int
    ) -> None:
        now = Factors(pair.a.detach(), pair.b.detach())
        metric, size = self._metric(pair, gradient, state, t)
        damping = Damping(SMALLEST, SMALLEST, max(peak * self.damping, JITTER))
        terms = [(weight * (-lr / pair.scale) / size, term) for weight, term in self._average(pair, gradient, state, t)]
        moved = self._moved(now, terms, metric, damping, t)
        pair.a.copy_(moved.a)
        pair.b.copy_(moved.b)

    @property
    def _holds_product(self) -> bool:
        """Whether the momentum is a matrix of its own, and not two averages at the factors."""
        return self.momentum_form == "lowrank" or self.mode == "gauss_seidel"

    def _moved(self, now: Factors, terms: Sum, metric: Metric, damping: Damping, t: int) -> Factors:
        match self.mode:
            case "jacobi":
                return jacobi(now, terms, metric, damping)
            case "gauss_seidel":
                return gauss_seidel(now, terms, metric, damping, sweeps=self.sweeps)
            case "alternating" if t % 2:
                return Factors(now.a, solve_b(now, now.a, terms, metric, damping))
            case "alternating":
                return Factors(solve_a(now, now.b, terms, metric, damping), now.b)
            case _:
                assert_never(self.mode)

    def _metric(self, pair: Pair, gradient: PairGradient, state: dict[str, Tensor], t: int) -> tuple[Metric, Tensor]:
        """The metric with mean one, and what the gradient is divided by besides."""
        if self.metric == "none":
            return unit(pair.a.detach())
        fresh = self._second(pair, gradient)
        averaged = Second(
            average_(state["metric_out"], fresh.out, decay=self.metric_decay, t=t),
            average_(state["metric_inn"], fresh.inn, decay=self.metric_decay, t=t),
        )
        metric, size = normalised(averaged, power=self.power, floor=self.metric_floor)
        if self.metric == "tangent":
            size = root_mean_square(averaged) * pair.a.shape[1]
        return metric, size

    def _second(self, pair: Pair, gradient: PairGradient) -> Second:
        """This step's moments. Clipping counts as a smaller s, as AdamW's second moment sees clipped gradients."""
        if self.metric == "tangent":
            return of_product(gradient.tangent(pair))
        squares, clip = gradient.observed.squares, gradient.clip
        assert squares is not None, "an observer of nothing"
        if self.metric == "kfac":
            return kfac(squares.out * clip**2, squares.inn, squares.count)
        x, s = gradient.observed.all_rows()
        return shampoo(x, s * clip, squares.count)

    def _average(
        self, pair: Pair, gradient: PairGradient, state: dict[str, Tensor], t: int
    ) -> list[tuple[float, Term]]:
        """M_t as weighted terms; `state` then holds the average for the next step."""
        known = gradient.known(pair)
        keep, fresh = self.momentum, 1 - self.momentum
        bias = 1 - keep**t
        exact: Term = known
        if self.mode == "gauss_seidel":
            x, s = gradient.observed.all_rows()
            exact = Product(s.T * gradient.clip, x)
        if keep == 0:
            return [(1.0, exact)]
        inn, out = state["momentum_inn"], state["momentum_out"]
        if not self._holds_product:
            # B'G (R, n) is filed under `inn`, GA' (m, R) under `out`: by their shapes.
            inn.lerp_(known.out, fresh)
            out.lerp_(known.inn, fresh)
            return [(1 / bias, AtIterate(inn, out))]
        past: Term = Product(out.clone(), inn.clone())
        self._extend_(pair, gradient, exact, state)
        return [(fresh / bias, exact), (keep / bias, past)]

    def _extend_(self, pair: Pair, gradient: PairGradient, exact: Term, state: dict[str, Tensor]) -> None:
        """The product in `state` becomes the best of its rank near momentum * M + (1 - momentum) * G."""
        held = Factors(state["momentum_inn"], state["momentum_out"])
        if isinstance(exact, AtIterate):
            exact = gradient.tangent(pair)
        fresh = 1 - self.momentum
        terms: Sum = [(-fresh, Product(held.b, held.a)), (fresh, exact)]
        plain = Metric.plain(held.a)
        moved = gauss_seidel(held, terms, plain, NEARLY_NONE)
        state["momentum_inn"].copy_(moved.a)
        state["momentum_out"].copy_(moved.b)
