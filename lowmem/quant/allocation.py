"""How many bits each layer gets under a size, everything in the file counted.

A size is spent on: what is not coded (norms, biases, layers left out), the coded tables, headers, rotations at their
largest, and the codes, which are chosen by `sensitivity.allocate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from lowmem.errors import BudgetError
from lowmem.quant.codec import Kind, group_count, padded
from lowmem.quant.quantize import Candidate
from lowmem.quant.rotation import kronecker_schedule
from lowmem.quant.sensitivity import allocate, choices
from lowmem.units import format_bytes

HEADER = 512
HEADER_EACH = 146
"""Bytes of a safetensors header, and of each tensor in it with its digest, besides its name, which stands there twice:
measured 140."""
SUFFIX = 16
"""Letters that name a part of a coded layer."""
TABLE_GROUP = 64


@dataclass(frozen=True)
class Shapes:
    """What a model is made of, as far as its size goes."""

    linears: Mapping[str, tuple[int, int]]
    """Linear layers that are coded, (m, n) by name."""
    tables: Mapping[str, tuple[int, int]]
    """The embedding and a head of its own."""
    other_bytes: int
    """Everything that is stored as it is."""
    other_names: tuple[str, ...]

    @property
    def weights(self) -> int:
        """Weights of the coded linear layers."""
        return sum(m * n for m, n in self.linears.values())


@dataclass(frozen=True)
class Limits:
    """What is asked, and what it is spent on besides codes. One of `size` and `average_bits` is given."""

    candidates: tuple[Candidate, ...]
    group_size: int
    embeddings: int
    """Bits of the tables; 16 = not coded."""
    size: int | None
    average_bits: float | None


def shapes_of(model: nn.Module, names: Sequence[str], tables: Sequence[str], *, itemsize: int) -> Shapes:
    """The shapes of `model`, whose uncoded tensors are stored with `itemsize` bytes a number; ties count once."""
    linears = {name: _shape(model.get_submodule(name)) for name in names}
    found = {name: _shape(model.get_submodule(name)) for name in tables}
    coded = sum(m * n for m, n in (*linears.values(), *found.values()))
    rest = sum(parameter.numel() for parameter in model.parameters()) - coded
    taken = {f"{name}.weight" for name in (*linears, *found)}
    others = tuple(name for name, _ in model.named_parameters() if name not in taken)
    return Shapes(linears, found, rest * itemsize, others)


def table_bytes(shape: tuple[int, int], bits: int) -> int:
    """Bytes of a table of int4 or int8 codes with a scale for each group of 64."""
    m, n = shape
    return m * padded(n) * bits // 8 + 2 * m * group_count(n, TABLE_GROUP) + 8


def rotation_bytes(shape: tuple[int, int], candidates: Sequence[Candidate]) -> int:
    """Bytes of both sides' rotations, at the dearest of `candidates`."""
    if set(candidates) == {"none"}:
        return 0
    learned = any(name.startswith("harp") for name in candidates)
    total = 0
    for order in shape:
        total += -(-order // 8)
        if learned:
            total += sum(order // b * (b * (b - 1) // 2 + 2) for b in kronecker_schedule(order).radices)
    return total


def side_bytes(shapes: Shapes, candidates: Sequence[Candidate], group_size: int) -> int:
    """What the linear layers take besides the codes and one scale a row: rotations, and the scales of more groups."""
    total = 0
    for m, n in shapes.linears.values():
        total += rotation_bytes((m, n), candidates) + 2 * m * (group_count(n, group_size) - 1)
    return total


def header_bytes(shapes: Shapes, candidates: Sequence[Candidate], embeddings: int) -> int:
    """The header of the file, with the names and digests of all tensors."""
    learned = any(name.startswith("harp") for name in candidates)
    total = HEADER + sum(2 * len(name) + HEADER_EACH for name in shapes.other_names)
    for name, shape in shapes.linears.items():
        stages = sum(len(kronecker_schedule(order).radices) for order in shape)
        tensors = 3 + (0 if set(candidates) == {"none"} else 2) + (2 * stages if learned else 0)
        total += tensors * (2 * (len(name) + SUFFIX) + HEADER_EACH)
    if embeddings < 16:
        total += sum(2 * (2 * (len(name) + SUFFIX) + HEADER_EACH) for name in shapes.tables)
    return total


def fixed_bytes(shapes: Shapes, limits: Limits) -> int:
    """What the file takes besides the linear layers."""
    coded = limits.embeddings < 16
    tables = sum(table_bytes(shape, limits.embeddings) for shape in shapes.tables.values()) if coded else 0
    return shapes.other_bytes + tables + header_bytes(shapes, limits.candidates, limits.embeddings)


def codes_bytes(shapes: Shapes, kinds: Sequence[Kind], limits: Limits) -> int:
    """Bytes of all codes with their scales and rotations: what was asked for, or every layer at its largest kind."""
    codes = sum(max(c.nbytes for c in choices(shape, 0.0, kinds)) for shape in shapes.linears.values())
    if limits.average_bits is not None:
        codes = min(codes, int(limits.average_bits * shapes.weights / 8))
    if limits.size is not None:
        codes = min(codes, limits.size)
    tables = sum(table_bytes(shape, limits.embeddings) for shape in shapes.tables.values())
    return codes + side_bytes(shapes, limits.candidates, limits.group_size) + tables


def choose(shapes: Shapes, sensitivity: Mapping[str, float], kinds: Sequence[Kind], limits: Limits) -> dict[str, Kind]:
    """The kind of every linear layer so that the file takes at most `size` bytes, or the linear layers at most
    `average_bits` a weight. Raises `BudgetError` with the nearest that can be had."""
    require_possible(shapes, kinds, limits)
    budget = -side_bytes(shapes, limits.candidates, limits.group_size)
    if limits.size is not None:
        budget += limits.size - fixed_bytes(shapes, limits)
    if limits.average_bits is not None:
        budget += int(limits.average_bits * shapes.weights / 8)
    options = {name: choices(shape, sensitivity[name], kinds) for name, shape in shapes.linears.items()}
    return {name: choice.kind for name, choice in allocate(options, budget).items()}


def require_possible(shapes: Shapes, kinds: Sequence[Kind], limits: Limits) -> None:
    """Raises `BudgetError` with the nearest that can be had when even the smallest kinds take more."""
    least = side_bytes(shapes, limits.candidates, limits.group_size)
    for shape in shapes.linears.values():
        least += min(choice.nbytes for choice in choices(shape, 0.0, kinds))
    average = limits.average_bits
    if average is not None and 8 * least > average * shapes.weights:
        raise BudgetError(
            f"average_bits: {average:g} cannot be met: with {' and '.join(kinds)} to choose from, scales and "
            f"rotations counted, the nearest is {_up(8 * least / shapes.weights)} bits"
        )
    whole = least + fixed_bytes(shapes, limits)
    if limits.size is not None and whole > limits.size:
        less = ", or less with embeddings=4" if limits.embeddings > 4 else ""
        raise BudgetError(
            f"size: {format_bytes(limits.size)} cannot be met: with {' and '.join(kinds)} to choose from the file "
            f"takes at least {format_bytes(whole)} ({whole} bytes), {format_bytes(whole - least)} of them for what is "
            f"not a linear layer; ask for that{less}"
        )


def _up(bits: float) -> str:
    return f"{-(-bits * 100 // 1) / 100:.2f}"


def _shape(module: nn.Module) -> tuple[int, int]:
    weight = module.get_parameter("weight")
    return weight.shape[0], weight.shape[1]
