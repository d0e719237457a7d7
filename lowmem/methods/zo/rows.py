"""A perturbed vocabulary matrix that exists only where something reads it.

The embedding and the output head are the largest matrices of most models: 103 M of OPT-1.3B's weights, six times its
largest hidden matrix. A copy of one would be the peak of a step. What stands in the module's place here answers the two
questions that modules ask of such a matrix: a lookup builds the rows that were asked for, which are its result, and a
product builds the rows of a piece of the vocabulary, multiplies, and lets the next piece overwrite them. So the
logits are those of plain inference, and the scratch of the head is one piece. Anything else that a module does with its
weight gets the whole perturbed matrix, at its full price.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Source(Protocol):
    """Builds perturbed rows of one matrix."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def gather(self, ids: Tensor) -> Tensor:
        """New memory: the rows `ids` (N,) of the matrix."""
        ...

    def piece(self, rows: slice) -> AbstractContextManager[Tensor]:
        """Rows of the matrix in scratch memory, which is free again afterwards."""
        ...


class VocabularyRows:
    """Stands for a perturbed (V, D) matrix in `nn.Embedding` and `nn.Linear`. `piece_bytes` bounds what a product needs
    besides its result, a piece of the matrix."""

    def __init__(self, source: Source, *, piece_bytes: int) -> None:
        self._source = source
        self._piece_bytes = piece_bytes

    @property
    def shape(self) -> torch.Size:
        return self._source.shape

    @property
    def dtype(self) -> torch.dtype:
        return self._source.dtype

    @property
    def device(self) -> torch.device:
        return self._source.device

    def whole(self) -> Tensor:
        """The whole perturbed matrix, newly made."""
        return self._source.gather(torch.arange(self.shape[0], device=self.device))

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            return _linear(*args, **kwargs)
        if func is F.embedding and _plain_lookup(*args, **kwargs):
            return _lookup(args[0] if args else kwargs["input"], args[1] if len(args) > 1 else kwargs["weight"])
        return func(*map(_materialised, args), **{key: _materialised(value) for key, value in kwargs.items()})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole(), name)

    def __getitem__(self, index: Any) -> Tensor:
        return self.whole()[index]


def _plain_lookup(
    input: Tensor, weight: Any, padding_idx: int | None = None, max_norm: float | None = None, *_: Any, **__: Any
) -> bool:
    """Whether a lookup returns rows and does nothing else; with `max_norm` it also shortens them in the matrix."""
    return max_norm is None


def _lookup(ids: Tensor, weight: VocabularyRows) -> Tensor:
    return weight._source.gather(ids.reshape(-1)).view(*ids.shape, weight.shape[1])


def _linear(input: Tensor, weight: VocabularyRows, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, a piece of the vocabulary after the other, each written where it belongs."""
    vocabulary, width = weight.shape
    step = max(1, weight._piece_bytes // (width * weight.dtype.itemsize))
    flat = input.reshape(-1, width)
    out = input.new_empty(flat.shape[0], vocabulary)
    for start in range(0, vocabulary, step):
        rows = slice(start, min(start + step, vocabulary))
        with weight._source.piece(rows) as matrix:
            torch.mm(flat, matrix.T, out=out[:, rows])
    if bias is not None:
        out += bias
    return out.view(*input.shape[:-1], vocabulary)


def _materialised(value: Any) -> Any:
    return value.whole() if isinstance(value, VocabularyRows) else value
