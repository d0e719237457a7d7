"""HARP: fit the two rotations of one weight to the weight, its inputs' second moment and the code that will hold it.

The stages of `rotation.py` start as the randomized Hadamard transform (angles 0). Adam turns the angles of both sides,
full batch, on

    W~ = U^T W1 V,  H~ = V^T H1 V            (W1, H1: signs and the fixed factor already applied)
    loss = mean( h[col] (W~ / sigma - T)^2 ) + lambda sum of squares of H~ outside its 8 x 8 diagonal blocks / n^2

where sigma = scale of the code for the RMS of W~, T = nearest codeword (refreshed every `refresh` steps) and h = the
weight of each column are held constant. `weighting` says what h is: "diagonal", diag(H~) as in the paper, or
"conditional", the squared diagonal of the Cholesky factor of H~, which is what a column's error costs *after* error
feedback (ours; with lambda 0 it was the steadier of the two on outlier channels). The fit sees second moments only.

The proxy alone cannot tell a good fit from a bad one (it ignores feedback, and small matrices overfit), so the best
iterate is chosen every `check` steps by the conditional-weighted error of the *int8-rounded* angles, and `quantize.py`
compares the winner with the RHT by the real loss. State while fitting: W~ and H~ with their gradients through the
stages, and 12 bytes per angle.

Source: arXiv 2605.29843, from its text. Ours: 200 steps with cosine decay instead of 1200 at a constant rate, the
closed-form bases, the choice of iterate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lowmem.quant.coders import SPREAD, Coder
from lowmem.quant.ldlq import conditional_variance
from lowmem.quant.orthogonal import base_matrix
from lowmem.quant.rotation import Rotation, Schedule, apply_fixed, apply_stages_to_columns, cayley

HBD_BLOCK = 8
Angles = Sequence[Sequence[Tensor]]
"""Per side (left, right), per stage: (kernels, b (b - 1) / 2)."""


@dataclass(frozen=True)
class FitOptions:
    """How angles are fitted."""

    steps: int = 200
    lr: float = 0.03
    last_lr: float = 0.003
    hbd: float = 0.1
    """lambda, the weight of energy of H~ outside its diagonal blocks."""
    weighting: Literal["diagonal", "conditional"] = "diagonal"
    refresh: int | None = None
    """Visits to the same rows between two searches for their nearest codewords; None: 1 for scalar kinds, 4 for
    lattices, whose search costs more than the step."""
    parts: int = 4
    """A step sees one of this many slices of the rows in turn, where the left side's fixed factor splits them into
    blocks that share no angle. Measured in docs/LOG.md."""
    hbd_every: int = 8
    """The off-block term enters every this many steps, with this many times the weight."""
    check: int = 50
    """Steps between two looks at the iterate with rounded angles."""
    reweigh: int = 25
    """Steps between two updates of h: "conditional" factors H~ in fp64, at n = 1536 as dear as several steps."""
    spread: float = 1.1
    """Scale of the code against the best one for a Gaussian: error feedback widens what is coded."""


@dataclass(frozen=True)
class Fit:
    """What a fit found: both rotations with rounded angles, and the error estimate at step 0 and at the best step."""

    left: Rotation
    right: Rotation
    first: float
    best: float
    best_step: int


@torch.enable_grad()
def fit(W: Tensor, H: Tensor, coder: Coder, left: Rotation, right: Rotation, options: FitOptions) -> Fit:
    """Both rotations fitted for `W` (m, n) and damped `H` (n, n), fp32.

    `left` (order m) and `right` (order n) give signs and schedules. Angles all zero are among the iterates, so `best <=
    first`. Raises `ValueError` where a side has no signs (mode none).
    """
    if left.signs is None or right.signs is None:
        raise ValueError("a rotation without signs cannot be fitted: start from random_hadamard")
    problem = _Problem(_prepared(W, H, left, right), coder, left.schedule, right.schedule, options)
    angles = [_zeros(left.schedule, W), _zeros(right.schedule, W)]
    flat = [theta.requires_grad_() for side in angles for theta in side]
    if not flat:
        raise ValueError(f"orders {left.order} and {right.order} have no stage to fit")
    adam = torch.optim.Adam(flat, lr=options.lr)
    best = (math.inf, 0, [side.copy() for side in angles])
    first = math.inf
    for step in range(options.steps + 1):
        if step % options.check == 0 or step == options.steps:
            rounded = [[_dequantized(*round_angles(theta.detach())) for theta in side] for side in angles]
            error = problem.estimate(rounded)
            first = error if step == 0 else first
            if error < best[0]:
                best = (error, step, [[theta.detach().clone() for theta in side] for side in angles])
        if step == options.steps:
            break
        _set_lr(adam, options, step)
        adam.zero_grad()
        problem.loss(angles, step).backward()  # type: ignore[no-untyped-call]
        adam.step()
    return Fit(_learned(left, best[2][0]), _learned(right, best[2][1]), first, best[0], best[1])


def off_block_energy(H: Tensor, block: int = HBD_BLOCK) -> Tensor:
    """Sum of squares of `H` (n, n) outside its diagonal blocks, over n^2. A last smaller block counts as one."""
    n = H.shape[0]
    inside = H.new_zeros(())
    whole = n - n % block
    if whole:
        inside = H[:whole, :whole].reshape(whole // block, block, -1, block).diagonal(dim1=0, dim2=2).square().sum()
    return (H.square().sum() - inside - H[whole:, whole:].square().sum()) / n**2


def round_angles(theta: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 angles, fp16 scale per kernel) of (kernels, angles); an all-zero kernel stays zero."""
    scale = (theta.abs().amax(dim=1) / 127).clamp_min(torch.finfo(torch.float16).tiny).to(torch.float16)
    return (theta / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8), scale


class _Problem:
    """One weight and its moments with the fixed parts applied, and the held targets."""

    def __init__(
        self, data: tuple[Tensor, Tensor], coder: Coder, left: Schedule, right: Schedule, options: FitOptions
    ) -> None:
        self.W, self.H = data
        self.coder, self.left, self.right, self.options = coder, left, right, options
        self.refresh = options.refresh or (1 if coder.width == 1 else 4)
        self.parts = math.gcd(left.fixed, options.parts)
        self.held: dict[int, tuple[float, Tensor]] = {}
        self.column_weight = torch.ones(right.order)

    def loss(self, angles: Angles, step: int) -> Tensor:
        """The loss of one step: one slice of the rows, and the off-block term when it is due."""
        part = step % self.parts
        left, right = self.kernels([[theta.tensor_split(self.parts)[part] for theta in angles[0]], angles[1]])
        W = self.weight(left, right, part)
        if step % (self.refresh * self.parts) < self.parts:
            self.held[part] = self._nearest(W.detach())
        due = self.options.hbd > 0 and step % self.options.hbd_every == 0
        H = self.moments(right) if due else None
        if step % self.options.reweigh == 0:
            self.column_weight = self._weights(self._detached_moments(right) if H is None else H.detach())
        sigma, target = self.held[part]
        proxy = (self.column_weight[:, None] * (W / sigma - target).square()).mean()
        # In units of the code's levels the proxy depends on the kind; times spread^2 it is the error per unit variance.
        proxy = proxy * (SPREAD[self.coder.kind] * self.options.spread) ** 2
        if H is None:
            return proxy
        return proxy + self.options.hbd * self.options.hbd_every * off_block_energy(H)

    def estimate(self, angles: Angles) -> float:
        """Nearest-rounding error weighted by what a column's error costs under feedback."""
        with torch.no_grad():
            left, right = self.kernels(angles)
            W = self.weight(left, right)
            sigma, target = self._nearest(W)
            return float((conditional_variance(self.moments(right))[:, None] * (W - sigma * target).square()).mean())

    def kernels(self, angles: Angles) -> tuple[list[Tensor], list[Tensor]]:
        left, right = (
            [cayley(theta, b) @ base_matrix(b).to(theta) for theta, b in zip(side, schedule.radices, strict=True)]
            for side, schedule in zip(angles, (self.left, self.right), strict=True)
        )
        return left, right

    def weight(self, left: list[Tensor], right: list[Tensor], part: int | None = None) -> Tensor:
        """W~^T (n, m), or one slice of its columns when `left` holds the kernels of that slice."""
        rows = self.W if part is None else self.W.tensor_split(self.parts)[part]
        turned = apply_stages_to_columns(rows, self.left, left)
        return apply_stages_to_columns(turned.T, self.right, right)

    def moments(self, right: list[Tensor]) -> Tensor:
        """H~ (n, n)."""
        half = apply_stages_to_columns(self.H, self.right, right)
        return apply_stages_to_columns(half.T, self.right, right)

    @torch.no_grad()
    def _detached_moments(self, right: list[Tensor]) -> Tensor:
        return self.moments([kernel.detach() for kernel in right])

    def _weights(self, H: Tensor) -> Tensor:
        weight = H.diagonal() if self.options.weighting == "diagonal" else conditional_variance(H)
        return weight / weight.mean()

    def _nearest(self, W: Tensor) -> tuple[float, Tensor]:
        """(sigma, T^T) of W~^T (n, m): nearest levels, in units of sigma."""
        n, m = W.shape
        sigma = float(W.square().mean().sqrt()) * SPREAD[self.coder.kind] * self.options.spread
        if self.coder.width == 1:
            return sigma, self.coder.snap(W / sigma)
        filled = torch.nn.functional.pad(W.T / sigma, (0, -n % self.coder.width))
        return sigma, self.coder.snap(filled.reshape(-1, self.coder.width)).reshape(m, -1).T[:n]


def _prepared(W: Tensor, H: Tensor, left: Rotation, right: Rotation) -> tuple[Tensor, Tensor]:
    """Signs and fixed factors applied to both sides of W, and to both sides of H."""

    def fixed(x: Tensor, side: Rotation) -> Tensor:
        assert side.signs is not None
        return apply_fixed(x * side.signs.to(x.dtype), side.schedule)

    W = fixed(fixed(W.float(), right).T, left).T.contiguous()
    H = fixed(fixed(H.float(), right).T, right).contiguous()
    return W, H / H.diagonal().mean()


def _zeros(schedule: Schedule, like: Tensor) -> list[Tensor]:
    n = schedule.order
    return [torch.zeros(n // b, b * (b - 1) // 2, device=like.device) for b in schedule.radices]


def _dequantized(angles: Tensor, scale: Tensor) -> Tensor:
    return angles.float() * scale.float()[:, None]


def _learned(start: Rotation, thetas: Sequence[Tensor]) -> Rotation:
    rounded = [round_angles(theta.detach()) for theta in thetas]
    angles, scales = tuple(a for a, _ in rounded), tuple(s for _, s in rounded)
    return Rotation(start.order, "harp", start.signs, start.schedule, angles, scales)


def _set_lr(adam: torch.optim.Adam, options: FitOptions, step: int) -> None:
    cosine = (1 + math.cos(math.pi * step / options.steps)) / 2
    for group in adam.param_groups:
        group["lr"] = options.last_lr + (options.lr - options.last_lr) * cosine
