"""One weight to one packed weight: rotate, code with error feedback, and keep the candidate that loses least.

`quantize_weight` tries the candidates it is given (no rotation, RHT, HARP with and without the off-block term), each
with the full coding that the file will hold, and keeps the one with the least tr(E H E^T). After coding, every scale is
set to its best value for the codes (the least-squares row scale in the metric of H), which can only help.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from lowmem.errors import NonFiniteError
from lowmem.quant.codec import BLOCK, PLANE_BYTES, Kind, PackedWeight, bits_per_code, padded, spread_scales, unpack
from lowmem.quant.coders import Coder, coder_for, packed_weight, round_scales, row_scales
from lowmem.quant.harp import FitOptions, fit
from lowmem.quant.hessian import damped
from lowmem.quant.ldlq import proxy_loss, round_ldlq, round_nearest
from lowmem.quant.rotation import Rotation, apply, apply_inverse, no_rotation, random_hadamard

Candidate = Literal["none", "rht", "harp", "harp-conditional"]
"""`harp`: the paper's objective. `harp-conditional`: lambda 0, columns weighted by their cost under feedback."""


@dataclass(frozen=True)
class QuantizeOptions:
    """How every weight of a model is coded."""

    kind: Kind = "s4"
    candidates: tuple[Candidate, ...] = ("rht", "harp", "harp-conditional")
    error_feedback: bool = True
    """False: plain nearest rounding, as an ablation."""
    sweeps: int = 2
    """Passes of coordinate descent after error feedback."""
    group_size: int = 0
    seed: int = 0
    fit: FitOptions = field(default_factory=FitOptions)


@dataclass(frozen=True)
class CandidateReport:
    """What one candidate cost. Losses are tr(E H E^T) / tr(W H W^T)."""

    name: Candidate
    loss: float
    nearest_loss: float
    nbytes: int
    seconds: float
    """CPU seconds of fit and coding, in the thread that did it."""


@dataclass(frozen=True)
class QuantizedWeight:
    """W^ = left side, packed weight, right side: y = left.inverse( (right(x)) packed^T )."""

    packed: PackedWeight
    left: Rotation
    right: Rotation
    reports: tuple[CandidateReport, ...] = ()
    chosen: Candidate = "none"

    @property
    def nbytes(self) -> int:
        """True bytes of everything a file holds for this weight."""
        return self.packed.nbytes + self.left.nbytes + self.right.nbytes

    @property
    def loss(self) -> float:
        return next(report.loss for report in self.reports if report.name == self.chosen)


def dequantize(weight: QuantizedWeight) -> Tensor:
    """W^ (m, n) fp32 in the original space."""
    rows = apply_inverse(unpack(weight.packed), weight.right)
    return apply_inverse(rows.T, weight.left).T.contiguous()


def quantize_weight(W: Tensor, H: Tensor, options: QuantizeOptions) -> QuantizedWeight:
    """`W` (m, n) coded for inputs of second moment `H` (n, n), not yet damped: the best of `options.candidates`.

    The same arguments give the same bits. Raises `NonFiniteError` where W or H holds NaN or infinity, `ValueError`
    without candidates.
    """
    if not options.candidates:
        raise ValueError("no candidate rotation was given; use at least one of none, rht, harp, harp-conditional")
    for name, tensor in (("weight", W), ("second moment", H)):
        if not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(f"the {name} of shape {tuple(tensor.shape)} holds NaN or infinity: it cannot be coded")
    W, H = W.detach().float(), damped(H)
    tried = [_candidate(name, W, H, options) for name in options.candidates]
    best = min(tried, key=lambda weight: weight.reports[0].loss)
    return replace(best, reports=tuple(weight.reports[0] for weight in tried))


def code_rotated(W: Tensor, H: Tensor, coder: Coder, options: QuantizeOptions) -> PackedWeight:
    """`W` and damped `H`, both already rotated, as a packed weight with refitted scales."""
    factor = _spread_factor(coder.kind) if options.error_feedback else 1.0
    scales, gain = row_scales(W, coder.kind, group_size=options.group_size, factor=factor)
    shape = (W.shape[0], W.shape[1])
    spread = scales.float() * gain
    if options.group_size:
        spread = spread.repeat_interleave(options.group_size, dim=1)[:, : W.shape[1]].contiguous()
    if options.error_feedback:
        _, codes = round_ldlq(W, H, coder, spread, sweeps=options.sweeps)
    else:
        _, codes = round_nearest(W, coder, spread)
    packed = packed_weight(coder, codes, shape, scales, gain, options.group_size)
    return _refitted(packed, W, H)


def quantize_table(W: Tensor, kind: Kind, *, group_size: int = 64) -> QuantizedWeight:
    """`W` (m, n) coded without rotation or feedback, for embeddings and heads: `kind` is int4 or int8.

    Of eight scales between 0.65 and 1 times the largest magnitude of a group, each group takes the one with the least
    squared error; a group of zeros stays zero. Raises `ValueError` for other kinds.
    """
    if kind not in ("int4", "int8"):
        raise ValueError(f"embeddings are coded as int4 or int8, not {kind!r}")
    coder, (m, n), width = coder_for(kind), W.shape, group_size or W.shape[1]
    rows = table_rows(n)
    scales, gain = round_scales(torch.cat([_table_scales(part.float(), coder, width) for part in torch.split(W, rows)]))
    plane = torch.empty(m, padded(n) // BLOCK * PLANE_BYTES[kind][0], dtype=torch.uint8, device=W.device)
    for part, into, own in zip(*(torch.split(whole, rows) for whole in (W, plane, scales)), strict=True):
        spread = (own.float() * gain).repeat_interleave(width, dim=1)[:, :n]
        _, codes = round_nearest(part.float(), coder, spread)
        into.copy_(packed_weight(coder, codes, (part.shape[0], n), own, gain, group_size).planes[0])
    packed = PackedWeight(kind, (m, n), (plane,), scales, gain, 0.0, group_size)
    return QuantizedWeight(packed, no_rotation(m), no_rotation(n))


def table_rows(columns: int) -> int:
    """Rows of a table that `quantize_table` codes at a time: a million weights, whatever the vocabulary."""
    return max(1, 2**20 // columns)


def _table_scales(W: Tensor, coder: Coder, width: int) -> Tensor:
    """(m, groups): of eight, the scale of each group with the least squared error."""
    m, n = W.shape
    groups = -(-n // width)
    filled = torch.nn.functional.pad(W, (0, groups * width - n)).reshape(m, groups, width)
    top = filled.abs().amax(2, keepdim=True) / (7 if coder.kind == "int4" else 127)
    best, error = top, torch.full_like(top, torch.inf)
    for share in torch.linspace(0.65, 1.0, 8).tolist():
        scale = (top * share).clamp_min(torch.finfo(torch.float32).tiny)
        missed = (coder.snap(filled / scale) * scale - filled).square().sum(2, keepdim=True)
        best, error = torch.where(missed < error, scale, best), torch.minimum(missed, error)
    return best[..., 0]


def _spread_factor(kind: Kind) -> float:
    """Scale against the best one for a Gaussian under feedback: measured 1.1 at two bits, 1.05 at three, 1 above."""
    return {2.0: 1.1, 3.0: 1.05}.get(bits_per_code(kind), 1.05 if kind == "nested" else 1.0)


def _refitted(packed: PackedWeight, W: Tensor, H: Tensor) -> PackedWeight:
    """The same codes with each row's scales where the row's loss is least; kept only if it is, after rounding to fp16.

    A row's scales s minimise (w - sum_g s_g l_g) H (...)^T with l_g its levels in group g: G equations per row.
    """
    levels = unpack(packed) / spread_scales(packed)
    n = levels.shape[1]
    width = packed.group_size or n
    parts = [slice(start, min(start + width, n)) for start in range(0, n, width)]
    weighted = [levels[:, part] @ H[part] for part in parts]
    right = torch.stack([(row * W).sum(1) for row in weighted], dim=1)
    inner = torch.stack([torch.stack([(row * levels)[:, p].sum(1) for p in parts], dim=1) for row in weighted], dim=1)
    best = torch.linalg.solve(inner.double(), right.double()).float()
    old = packed.scales.float() * packed.gain
    scales, gain = round_scales(torch.where((best > 0).all(1, keepdim=True), best, old))
    better = replace(packed, scales=scales, gain=gain)
    worse = proxy_loss(W - unpack(better), H) > proxy_loss(W - unpack(packed), H)
    return packed if worse else better


def _candidate(name: Candidate, W: Tensor, H: Tensor, options: QuantizeOptions) -> QuantizedWeight:
    began = time.thread_time()
    coder = coder_for(options.kind)
    left, right = _rotations(name, W, H, coder, options)
    rotated = apply(apply(W, right).T, left).T.contiguous()
    moments = apply(apply(H, right).T, right)
    moments = (moments + moments.T) / 2
    packed = code_rotated(rotated, moments, coder, options)
    total = max(proxy_loss(W, H), torch.finfo(torch.float32).tiny)
    plain = code_rotated(rotated, moments, coder, replace(options, error_feedback=False))
    report = CandidateReport(
        name=name,
        loss=proxy_loss(rotated - unpack(packed), moments) / total,
        nearest_loss=proxy_loss(rotated - unpack(plain), moments) / total,
        nbytes=packed.nbytes + left.nbytes + right.nbytes,
        seconds=time.thread_time() - began,
    )
    return QuantizedWeight(packed, left, right, (report,), name)


def _rotations(
    name: Candidate, W: Tensor, H: Tensor, coder: Coder, options: QuantizeOptions
) -> tuple[Rotation, Rotation]:
    m, n = W.shape
    if name == "none":
        return no_rotation(m), no_rotation(n)
    left, right = random_hadamard(m, 2 * options.seed), random_hadamard(n, 2 * options.seed + 1)
    if name == "rht":
        return left, right
    conditional = replace(options.fit, hbd=0.0, weighting="conditional")
    found = fit(W, H, coder, left, right, options.fit if name == "harp" else conditional)
    return found.left, found.right
