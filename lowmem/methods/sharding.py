"""One step of a method over several processes, each of which computes some of the micro-batches.

Every process holds the whole list of micro-batches (rows of token ids, cheap) and computes those whose turn is its
own. First order: the gradients are summed before the update. Zeroth order: only the losses travel, B numbers a probe,
and since every example's sum of fp64 losses keeps its place, N processes see the numbers that one process sees, to the
last bit. All processes then make the same update of the same weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from lowmem.data.batch import Batch
from lowmem.errors import ConfigError
from lowmem.methods.base import Method
from lowmem.models.loss import LossFn, LossSums


class Shards(Protocol):
    """The processes of a run."""

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    def sum_(self, tensor: Tensor) -> None:
        """`tensor` is the sum over all processes, in each of them, bit for bit the same."""
        ...


class ShardedLoss:
    """`LossFn` for `accumulate`: also says which micro-batches are this process's, and sums over all processes.

    `even`: every process takes as many turns, because each is a collective call (`fully_sharded.py`).
    """

    def __init__(
        self, loss_fn: LossFn, shards: Shards, parameters: Sequence[nn.Parameter], *, even: bool = False
    ) -> None:
        self._loss_fn, self._shards, self._parameters, self._even = loss_fn, shards, parameters, even

    def __call__(self, batch: Batch) -> LossSums:
        return self._loss_fn(batch)

    def turns(self, micro_batches: Sequence[Batch]) -> Iterator[tuple[int, Batch]]:
        """This process's micro-batches with their numbers; a number beyond the last counts for nothing."""
        count, world = len(micro_batches), self._shards.world
        for index in range(self._shards.rank, -(-count // world) * world if self._even else count, world):
            yield index, micro_batches[index % count]

    def sum_(self, tensor: Tensor) -> None:
        self._shards.sum_(tensor)

    def sum_numbers(self, numbers: Sequence[float]) -> list[float]:
        """Each number's sum over the processes."""
        summed = torch.tensor(numbers, dtype=torch.float64).to(self._parameters[0].device)
        self._shards.sum_(summed)
        found: list[float] = summed.tolist()
        return found

    def sum_gradients(self, loss: float) -> float:
        """Every `.grad` is the sum over the processes, None where no process has one; returns the sum of `loss`."""
        met = self.sum_numbers([*(float(p.grad is not None) for p in self._parameters), loss])
        *counts, total = met
        for parameter, count in zip(self._parameters, counts, strict=True):
            if not count:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            self._shards.sum_(parameter.grad)
        return total


class SharedProbes:
    """`LossFn` without gradients: whenever the first of `micro_batches` is asked for, each process computes its own,
    all losses are exchanged at once, and every call of that round returns what some process computed."""

    def __init__(self, loss_fn: LossFn, shards: Shards, micro_batches: Sequence[Batch]) -> None:
        self._loss_fn, self._shards, self._batches = loss_fn, shards, list(micro_batches)
        self._round: list[LossSums] = []

    def __call__(self, batch: Batch) -> LossSums:
        index = next(i for i, known in enumerate(self._batches) if known is batch)
        if index == 0:
            self._round = self._exchange()
        return self._round[index]

    def _exchange(self) -> list[LossSums]:
        sizes = [batch.examples for batch in self._batches]
        numbers = torch.zeros(2, sum(sizes), dtype=torch.float64, device=self._batches[0].input_ids.device)
        start = 0
        for index, (size, batch) in enumerate(zip(sizes, self._batches, strict=True)):
            if index % self._shards.world == self._shards.rank:
                sums = self._loss_fn(batch)
                numbers[0, start : start + size] = sums.per_example
                numbers[1, start : start + size] = sums.counts
            start += size
        self._shards.sum_(numbers)  # the others hold zeros there: adding them is exact
        return [LossSums(part[0], part[1]) for part in torch.split(numbers, sizes, dim=1)]


def refuse_unless_shardable(method: Method) -> None:
    """Raises `ConfigError` naming the reason when several processes would not make the same step of `method`."""
    from lowmem.methods.first_order import FirstOrder
    from lowmem.methods.layerwise import LayerWise
    from lowmem.methods.lowrank.descent import PairDescent
    from lowmem.methods.zo.zeroth_order import ZerothOrder

    match method:
        case ZerothOrder() | FirstOrder():
            return
        case PairDescent(observes="nothing") | LayerWise(clipping="exact"):
            return
        case PairDescent():
            reason = "its metric is measured on the tokens of one process; use metric: none"
        case LayerWise():
            reason = (
                f"method.clipping: {method.clipping} moves weights before gradients are summed; use clipping: exact"
            )
        case _:
            reason = "its update uses gradients before they are summed over the processes"
    raise ConfigError(
        f"torchrun: {method.title} cannot be split over processes: {reason}, or method.kind: full, lora or zo, "
        "or a single process"
    )


def trained(method: Method) -> list[nn.Parameter]:
    """What gradients are summed for: all that are whole in every process."""
    return [p for p in method.trainable.values() if isinstance(p, nn.Parameter) and not is_sharded(p)]


def is_sharded(tensor: Tensor) -> bool:
    """Whether each process holds a part of `tensor` alone."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def fingerprint(tensors: Iterable[Tensor]) -> int:
    """A 63-bit hash of all bytes, in order."""
    import hashlib

    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        for piece in torch.split(tensor.detach().reshape(-1).contiguous().view(torch.uint8), 2**24):
            digest.update(piece.cpu().numpy().data)
    return int.from_bytes(digest.digest(), "little") >> 1
