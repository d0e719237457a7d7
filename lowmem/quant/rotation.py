"""Rotations of one side of a weight: none, the randomized Hadamard transform (RHT), or learned stages (HARP).

A rotation of order `n` maps a row vector x to

    x -> (((x * signs) F) S_0) S_1 ...

`F` is the fixed Kronecker factor (`orthogonal.fixed_factor`: 36 for 576 = 36 x 16, none for powers of two) and `S_t`
are block-orthogonal stages of radix b_t. A stage of radix b and stride s views the vector as z[c, b, s] and multiplies
along the middle axis by one b x b matrix per position (c, s):

    z'[c, j, s] = sum_i K[c, s][j, i] z[c, i, s]        K[c, s] = Cayley(theta[c, s]) M_b

`M_b` is the fixed base of order b and Cayley(theta) = (I + S)^-1 (I - S) with S the skew matrix of theta, so with
theta = 0 the stages are a plain Hadamard transform: then all positions share `M_b` and the rotation is the RHT. F takes
the slowest axis, and comes first so that fitting the stages can apply it once.

Learned angles are int8 times one fp16 scale per kernel, upper triangle only. The Cayley map is orthogonal for any
angles, so rounding them costs nothing *if weights are coded against the rounded rotation*: `Rotation` holds
the rounded angles and nothing else.

Source: arXiv 2605.29843 (HARP), from its text; Hartley bases in place of drawn ones for odd radices are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from lowmem.errors import FormatError
from lowmem.quant.orthogonal import base_matrix, fixed_factor

Mode = Literal["none", "rht", "harp"]
RADIX = 8
"""Largest radix of the greedy schedule; a larger prime remainder becomes a radix of its own."""


@dataclass(frozen=True)
class Schedule:
    """How an order splits: the fixed factor, and the radices of the stages, fastest axis first."""

    fixed: int
    radices: tuple[int, ...]

    @property
    def order(self) -> int:
        return self.fixed * math.prod(self.radices)


@dataclass(frozen=True)
class Rotation:
    """One side of a weight. Raises `FormatError` where the parts do not fit. `mode` none has no signs and no stages."""

    order: int
    mode: Mode
    signs: Tensor | None = None
    """int8 (n,), +-1."""
    schedule: Schedule = field(default_factory=lambda: Schedule(1, ()))
    angles: tuple[Tensor, ...] = ()
    """HARP: int8 (n / b, b (b - 1) / 2) for each stage; positions (c, s) in row-major order."""
    angle_scales: tuple[Tensor, ...] = ()
    """HARP: fp16 (n / b,) for each stage."""

    def __post_init__(self) -> None:
        if self.mode == "none":
            return
        shapes = [(self.order // b, b * (b - 1) // 2) for b in self.schedule.radices]
        fits = (
            self.schedule.order == self.order
            and self.signs is not None
            and tuple(self.signs.shape) == (self.order,)
            and (self.mode == "rht" or [tuple(stage.shape) for stage in self.angles] == shapes)
        )
        if not fits:
            raise FormatError(f"rotation of order {self.order} ({self.mode}) does not fit its schedule {self.schedule}")

    @property
    def nbytes(self) -> int:
        """Bytes in a file: one bit per sign, one byte per angle, two per angle scale."""
        if self.signs is None:
            return 0
        return -(-self.order // 8) + sum(a.numel() for a in self.angles) + 2 * sum(s.numel() for s in self.angle_scales)

    def kernels(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """The matrices of each stage: (n / b, b, b), or (b, b) where all positions share one (RHT)."""
        if self.mode == "none":
            return []
        device = None if self.signs is None else self.signs.device
        bases = [base_matrix(radix).to(device, dtype) for radix in self.schedule.radices]
        if self.mode == "rht":
            return bases
        thetas = [a.to(dtype) * s.to(dtype)[:, None] for a, s in zip(self.angles, self.angle_scales, strict=True)]
        return [
            cayley(theta, radix) @ base for theta, radix, base in zip(thetas, self.schedule.radices, bases, strict=True)
        ]


def greedy_radices(n: int) -> tuple[int, ...]:
    """Factors of `n`, product n: eights while they divide, then the largest of the rest; a remainder without a
    factor up to 8 is one radix. `n = 1` has none."""
    radices: list[int] = []
    while n % RADIX == 0:
        radices.append(RADIX)
        n //= RADIX
    for factor in range(min(RADIX, n), 1, -1):
        while n % factor == 0:
            radices.append(factor)
            n //= factor
    return (*radices, n) if n > 1 else tuple(radices)


def kronecker_schedule(n: int) -> Schedule:
    """The schedule whose rotation at angle 0 is a Hadamard transform wherever one is known."""
    fixed = fixed_factor(n)
    return Schedule(fixed, greedy_radices(n // fixed))


def mixed_schedule(n: int) -> Schedule:
    """All of `n` in learned stages: more angles than `kronecker_schedule` where n is not a power of two."""
    return Schedule(1, greedy_radices(n))


def draw_signs(n: int, seed: int) -> Tensor:
    """Random int8 signs (n,), a pure function of `seed`."""
    generator = torch.Generator().manual_seed(seed)
    return (1 - 2 * torch.randint(0, 2, (n,), generator=generator)).to(torch.int8)


def pack_signs(signs: Tensor) -> Tensor:
    """+-1 int8 (n,) -> uint8 (ceil(n / 8),): bit i % 8 of byte i // 8 is set where the sign is negative."""
    bits = torch.nn.functional.pad((signs < 0).to(torch.uint8), (0, -len(signs) % 8)).reshape(-1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(1).to(torch.uint8)


def unpack_signs(packed: Tensor, n: int) -> Tensor:
    """The inverse of `pack_signs`."""
    bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    return (1 - 2 * bits.reshape(-1)[:n].to(torch.int8)).to(torch.int8)


def no_rotation(n: int) -> Rotation:
    return Rotation(n, "none")


def random_hadamard(n: int, seed: int) -> Rotation:
    return Rotation(n, "rht", draw_signs(n, seed), kronecker_schedule(n))


def cayley(theta: Tensor, radix: int) -> Tensor:
    """(..., b (b - 1) / 2) angles -> rotations (..., b, b) with determinant +1; the identity at 0. Differentiable."""
    skew = _skew(theta, radix)
    eye = torch.eye(radix, dtype=theta.dtype, device=theta.device)
    rotation: Tensor = torch.linalg.solve(eye + skew, eye - skew)
    return rotation


def apply(x: Tensor, rotation: Rotation) -> Tensor:
    """Rows of `x` (..., n) rotated: newly allocated, in the dtype of `x` (fp32 or fp64)."""
    if rotation.signs is None:
        return x.clone()
    z = apply_fixed(x * rotation.signs.to(x.dtype), rotation.schedule)
    return apply_stages(z, rotation.schedule, rotation.kernels(x.dtype))


def apply_inverse(x: Tensor, rotation: Rotation) -> Tensor:
    """The inverse of `apply`, which is its transpose."""
    if rotation.signs is None:
        return x.clone()
    kernels = [kernel.mT for kernel in rotation.kernels(x.dtype)]
    z = apply_stages(x, rotation.schedule, kernels, reverse=True)
    return apply_fixed(z, rotation.schedule, inverse=True) * rotation.signs.to(x.dtype)


def apply_fixed(x: Tensor, schedule: Schedule, *, inverse: bool = False) -> Tensor:
    """The fixed Kronecker factor along the slowest axis of the rows."""
    if schedule.fixed == 1:
        return x
    matrix = base_matrix(schedule.fixed).to(x.device, x.dtype)
    blocks = x.reshape(-1, schedule.fixed, x.shape[-1] // schedule.fixed)
    return ((matrix.mT if inverse else matrix) @ blocks).reshape(x.shape)


def apply_stages(x: Tensor, schedule: Schedule, kernels: list[Tensor], *, reverse: bool = False) -> Tensor:
    """All stages in order (or from the last to the first) on rows (..., n); differentiable in `x` and in `kernels`."""
    columns = x.reshape(-1, x.shape[-1]).T
    return apply_stages_to_columns(columns, schedule, kernels, reverse=reverse).T.reshape(x.shape)


def apply_stages_to_columns(z: Tensor, schedule: Schedule, kernels: list[Tensor], *, reverse: bool = False) -> Tensor:
    """The same on columns (n, R): small matrices meet long rows here, which is several times faster than (R, n)."""
    strides = [math.prod(schedule.radices[:t]) for t in range(len(schedule.radices))]
    stages = list(zip(schedule.radices, strides, kernels, strict=True))
    for radix, stride, kernel in reversed(stages) if reverse else stages:
        z = _stage(z, radix, stride, kernel)
    return z


def _stage(z: Tensor, radix: int, stride: int, kernel: Tensor) -> Tensor:
    order, width = z.shape
    if kernel.ndim == 2:
        return (kernel @ z.reshape(-1, radix, stride * width)).reshape(order, width)
    if stride == 1:
        return (kernel @ z.reshape(-1, radix, width)).reshape(order, width)
    blocks = z.reshape(-1, radix, stride, width).transpose(1, 2).reshape(-1, radix, width)
    turned = (kernel @ blocks).reshape(-1, stride, radix, width)
    return turned.transpose(1, 2).reshape(order, width)


def _skew(theta: Tensor, radix: int) -> Tensor:
    rows, columns = torch.triu_indices(radix, radix, 1, device=theta.device)
    empty = theta.new_zeros(*theta.shape[:-1], radix * radix)
    upper = empty.scatter(-1, (rows * radix + columns).expand(theta.shape), theta).reshape(
        *theta.shape[:-1], radix, radix
    )
    return upper - upper.mT
