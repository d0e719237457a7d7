"""The gradient of the mean loss of an effective batch, from its micro-batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from lowmem.data.batch import Batch
from lowmem.errors import ConfigError
from lowmem.kernels.reference import stream_key
from lowmem.methods.sharding import ShardedLoss
from lowmem.methods.tensors import scalar
from lowmem.models.loss import LossFn


def accumulate(loss_fn: LossFn, micro_batches: Sequence[Batch], *, seed: int, step: int) -> float:
    """`.grad` of every trained parameter holds the gradient of the mean loss; returns that mean.

    Each micro-batch contributes its *sum* over the weight of all of them, so unequal sizes do not matter. Under a
    `ShardedLoss` this process computes some of them, and both results are sums over all processes.
    """
    sharded = loss_fn if isinstance(loss_fn, ShardedLoss) else None
    weight = sum(batch.weight for batch in micro_batches)
    loss = 0.0
    turns = enumerate(micro_batches) if sharded is None else sharded.turns(micro_batches)
    for index, batch in turns:
        # Dropout is the only draw inside the model: seeding it per micro-batch makes resume exact.
        with torch.random.fork_rng(devices=[batch.input_ids.device] if batch.input_ids.is_cuda else []):
            torch.manual_seed(stream_key(seed, step, index, "", "dropout") >> 1)
            total = loss_fn(batch).total / weight
            if index >= len(micro_batches):  # a turn for company's sake
                total = total * 0
            total.backward()  # type: ignore[no-untyped-call]
        loss += scalar(total)
    return loss if sharded is None else sharded.sum_gradients(loss)


def gradient_norm(parameters: Iterable[Tensor]) -> float:
    """Euclidean norm over all gradients. Raises `ConfigError` where there is none."""
    norms = [p.grad.norm(dtype=torch.float32) for p in parameters if p.grad is not None]
    if not norms:
        raise ConfigError("method: no trained parameter received a gradient; is the loss connected to them?")
    return scalar(torch.stack(norms).norm())


def drop_gradients(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None
