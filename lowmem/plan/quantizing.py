"""What quantizing a model takes at its peak, before any weight is read.

Phases, each beside the model's weights: reading the original (logits of the gate's text), coding blocks (hidden states
of the calibration text, second moments of one block, one layer's fit), coding the tables, saving (all codes).

What the model does is run on fake tensors. How one layer is coded cannot be: thousands of steps that look at values.
Its peak is a sum of matrices of the layer's two sizes, counted here in units of 4 m n and 4 n^2 bytes from the code,
and held to within 2 % of the counted bytes by tests/plan/test_quantizing.py. The fit of HARP is run on fake tensors,
for a few steps.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lowmem.errors import BudgetError
from lowmem.plan.tracker import LiveBytes
from lowmem.quant.codec import Kind, bits_per_code, group_count, padded
from lowmem.quant.coders import coder_for
from lowmem.quant.harp import fit
from lowmem.quant.hessian import damped
from lowmem.quant.lattice import CHUNK
from lowmem.quant.model import capture, decoder_blocks, moments_of
from lowmem.quant.quantize import QuantizeOptions, table_rows
from lowmem.quant.rotation import random_hadamard
from lowmem.units import format_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FIT_STEPS = 9
"""Steps of a simulated fit: the first and the ninth have the off-block term, and one iterate is checked between."""


@dataclass(frozen=True)
class QuantizingBill:
    """Bytes of tensors at the peak of each phase, weights included, and the parts of the largest one."""

    weights: int
    hidden: int
    """Hidden states, masks and positions of the calibration text."""
    moments: int
    """Second moments of one block's inputs."""
    fit: int
    """The dearest layer while it is coded."""
    phases: Mapping[str, int]

    @property
    def peak(self) -> int:
        return max(self.phases.values())


def require_room(bill: QuantizingBill, budget: int, overhead: int) -> None:
    """Raises `BudgetError` with the bill when quantizing needs more than `budget`, `overhead` of it for the process."""
    total = bill.peak + overhead
    if total > budget:
        raise BudgetError(
            f"quantizing needs {format_bytes(total)} of {format_bytes(budget)}: weights {format_bytes(bill.weights)}, "
            f"calibration text {format_bytes(bill.hidden)}, moments of a block {format_bytes(bill.moments)}, one "
            f"layer's coding {format_bytes(bill.fit)}, the process itself {format_bytes(overhead)}; "
            "lower calibration.tokens, take dtype=bf16, rotation=rht or workers=1, or raise the budget"
        )


def predict_quantizing(
    model: PreTrainedModel,
    fake: tuple[FakeTensorMode, PreTrainedModel],
    calibration: Sequence[Mapping[str, Tensor]],
    gate: Sequence[tuple[Mapping[str, Tensor], int]],
    options: Sequence[QuantizeOptions],
    *,
    tables: Sequence[tuple[int, int]],
    codes: int,
    workers: int,
) -> QuantizingBill:
    """The bill of `model` (shapes are read, on any device). `fake`: the same model with at least one block, fake.

    `gate`: inputs and counted positions of each text. `options`: everything that a layer may be coded with.
    `codes`: bytes of all of them together.
    """
    weights = _nbytes(model)
    mode, small = fake
    with mode, Scalars(), torch.no_grad():
        hidden, moments, forward = _calibrating(small, calibration)
        reading = max((_reading(small, inputs, positions) for inputs, positions in gate), default=0)
    itemsize = next(model.parameters()).dtype.itemsize
    shapes = _largest(model)
    fits = sorted((max(coding_bytes(shape, o, itemsize) for o in options) for shape in shapes), reverse=True)
    most = sum(fits[:workers]) if len(fits) >= workers else fits[0] * workers
    phases = {"original": weights + reading, "blocks": weights + hidden + max(forward, moments + most)}
    if tables:
        done = [sum(map(table_codes, tables[:index])) for index in range(len(tables))]
        phases["tables"] = weights + max(
            table_bytes(shape, itemsize) + codes for shape, codes in zip(tables, done, strict=True)
        )
    phases["save"] = weights + codes
    return QuantizingBill(weights, hidden, moments, most, phases)


def coding_bytes(shape: tuple[int, int], options: QuantizeOptions, itemsize: int) -> int:
    """Bytes beside the weight and the summed moments while a layer of this shape is coded, at the peak."""
    m, n = shape
    wide, square = 4 * m * n, 4 * n * n
    found = [_rounding(options.kind, m, n)]
    if options.error_feedback:
        found.append(11 * square + 2 * wide)  # fp64: moments, factor, its blocks, L, L - I; fp32: W, W~, H, H~
    if any(name.startswith("harp") for name in options.candidates):
        found.append(_fitting(shape, options))
    return max(found) - (wide if itemsize == 4 else 0)  # W itself is counted with the weights, or cast to fp32


def table_bytes(shape: tuple[int, int], itemsize: int) -> int:
    """Bytes beside the weights while a table is coded: a slab whose scales are sought, or all codes and a slab."""
    (m, n), whole = shape, padded(shape[1])
    first = min(m, table_rows(n))
    later = min(first, m - first)
    cast = 0 if itemsize == 4 else n  # fp32 weights are read where they are
    scaling = 4 * first * ((TABLE_SCALING + (n < whole)) * whole + cast)
    coding = 4 * (TABLE_CODING * n + cast)
    slab = max(coding * first, coding * later + 4 * TABLE_LEFT * n * first)
    return int(max(scaling, slab + 4 * n * n + table_codes(shape)))


def table_codes(shape: tuple[int, int]) -> int:
    """Bytes of a coded table, at 8 bits: codes and scales."""
    m, n = shape
    return m * padded(n) + 2 * m * group_count(n, TABLE_GROUP)


TABLE_SCALING, TABLE_CODING, TABLE_LEFT = 4.33, 5.25, 1.25
"""Matrices of a slab's size alive at once in `quantize_table`: while scales are sought (in whole groups, one more where
that takes a copy), and while codes are; what one slab leaves to the next."""
TABLE_GROUP = 64
"""Columns that share a scale in a table."""


_LATTICE: dict[Kind, tuple[float, float, int]] = {
    "e8": (13.79, 3.1, 498),
    "nested": (14.98, 6.97, 426),
    "e8r": (13.79, 6.2, 2048),
}
"""Matrices alive while scales are refitted, and while a chunk of vectors is searched; bytes of a searched vector."""


def _rounding(kind: Kind, m: int, n: int) -> int:
    """Rounding and refitting of a rotated weight, W and H included."""
    wide, square = 4 * m * n, 4 * n * n
    if kind not in _LATTICE:
        return int((8.344 + bits_per_code(kind) / 32) * wide) + 3 * square
    refit, search, vector = _LATTICE[kind]
    return max(int(refit * wide) + 3 * square, int(search * wide) + 4 * square + vector * min(CHUNK, m * n // 8))


def _fitting(shape: tuple[int, int], options: QuantizeOptions) -> int:
    """A few steps of the fit of both objectives on fake tensors, with W, H and the damped H."""
    m, n = shape
    steps = dataclasses.replace(options.fit, steps=FIT_STEPS, check=FIT_STEPS // 2)
    conditional = dataclasses.replace(steps, hbd=0.0, weighting="conditional")
    tracker = LiveBytes()
    with FakeTensorMode(allow_non_fake_inputs=True), Scalars(), tracker, torch.no_grad():
        W, H = torch.empty(m, n), torch.empty(n, n)
        ridged = damped(H)
        left, right = random_hadamard(m, 0), random_hadamard(n, 1)
        for fitted in (steps, conditional):
            fit(W, ridged, coder_for(options.kind), left, right, fitted)
    return max(tracker.peaks.values())


class Scalars(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Numbers read from fake tensors are 1 (true), and no rare case is met: enough to follow the code's memory."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
        if func is torch.ops.aten.nonzero.default:
            return torch.empty((0, args[0].dim()), dtype=torch.int64)
        return func(*args, **(kwargs or {}))


def _calibrating(model: PreTrainedModel, calibration: Sequence[Mapping[str, Tensor]]) -> tuple[int, int, int]:
    """(kept of the whole text, moments of a block, the forward pass at its peak beside what is kept)."""
    kept = forward = moments = 0
    shapes = Counter(tuple((name, tuple(t.shape)) for name, t in batch.items()) for batch in calibration)
    _, blocks = decoder_blocks(model)
    for shape, count in shapes.items():
        tracker = LiveBytes()
        with tracker:
            tracker.track_module(model)
            weights = tracker.current
            call = capture(model, blocks, {name: torch.empty(size, dtype=torch.int64) for name, size in shape})
            each = tracker.current - weights
            found = moments_of(blocks[0], 0, [call])
            moments = sum({id(moment): moment.nbytes for moment in found.values()}.values())
        kept += count * each
        forward = max(forward, max(tracker.peaks.values()) - weights - each)
    return kept, moments, forward


def _reading(model: PreTrainedModel, inputs: Mapping[str, Tensor], positions: int) -> int:
    """Bytes beside the weights while the gate reads one text."""
    tracker = LiveBytes()
    with tracker:
        tracker.track_module(model)
        weights = tracker.current
        given = {name: torch.empty(t.shape, dtype=torch.int64) for name, t in inputs.items()}
        where = torch.zeros(positions, dtype=torch.int64)
        logits = model(**given, use_cache=False).logits[where, where]
        torch.log_softmax(logits.float(), dim=-1)
    return max(tracker.peaks.values()) - weights


def _largest(model: nn.Module) -> list[tuple[int, int]]:
    """Shapes of a block's linear layers, without those that another exceeds in both sizes."""
    _, blocks = decoder_blocks(model)
    found = [
        (linear.weight.shape[0], linear.weight.shape[1])
        for block in blocks
        for linear in block.modules()
        if isinstance(linear, nn.Linear)
    ]
    distinct = set(found)
    return [a for a in distinct if not any(a != b and a[0] <= b[0] and a[1] <= b[1] for b in distinct)]


def _nbytes(model: nn.Module) -> int:
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())
