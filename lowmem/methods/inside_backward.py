"""Gradients that are used and freed while backward is still running, and steps that must not be repeated.

Back-propagation finishes the gradients one parameter at a time, from the output to the input. Whoever takes each one
as it is finished never needs memory for all of them. A parameter that is used several times (tied embeddings, the
chunks of the loss) is handed over once per backward, when all its uses are summed; recomputed activations change
nothing. What cannot be undone is that weights move before the last gradient is known: `Torn` remembers it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lowmem.data.batch import Batch
from lowmem.errors import OutOfMemoryError
from lowmem.kernels.noise import stream_key
from lowmem.methods.sharding import ShardedLoss
from lowmem.models.loss import LossFn

Receive = Callable[[str, Tensor], None]
"""Takes over the finished gradient of the named parameter; it is freed unless it is kept."""


@contextmanager
def gradients_to(parameters: Mapping[str, nn.Parameter], receive: Receive) -> Iterator[None]:
    """Inside, each backward hands the gradient of every parameter to `receive` and leaves `.grad` None."""
    handles: list[Any] = []
    for name, parameter in parameters.items():
        watched: Any = parameter  # the hook is untyped in torch
        handles.append(watched.register_post_accumulate_grad_hook(_handing_over(name, receive)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter in parameters.values():
            parameter.grad = None


def _handing_over(name: str, receive: Receive) -> Callable[[nn.Parameter], None]:
    def hook(parameter: nn.Parameter) -> None:
        grad, parameter.grad = parameter.grad, None
        if grad is not None:
            with torch.no_grad():
                receive(name, grad)

    return hook


def scaled_losses(loss_fn: LossFn, micro_batches: Sequence[Batch], *, seed: int, step: int) -> Iterator[Tensor]:
    """Each micro-batch's share of the mean loss, of this process's where there are several; its backward belongs into
    the loop over them.

    Dropout is the only draw inside the model: seeding it per micro-batch, for what backward recomputes too, makes
    resume exact and lets a micro-batch be run twice.
    """
    weight = sum(batch.weight for batch in micro_batches)
    turns = loss_fn.turns(micro_batches) if isinstance(loss_fn, ShardedLoss) else enumerate(micro_batches)
    for index, batch in turns:
        with torch.random.fork_rng(devices=[batch.input_ids.device] if batch.input_ids.is_cuda else []):
            torch.manual_seed(stream_key(seed, step, index, "", "dropout") >> 1)
            yield loss_fn(batch).total / weight


class Torn:
    """Whether weights and state lie between two steps, because a step failed after its first write.

    Such a step cannot be tried again: some tensors would move twice.
    """

    def __init__(self) -> None:
        self._step: int | None = None
        self._written = 0

    def writes(self, step: int) -> None:
        """Called before each tensor is written."""
        self._step = step
        self._written += 1

    def mended(self) -> None:
        """The step is complete, or everything was loaded anew."""
        self._step, self._written = None, 0

    def refuse(self) -> None:
        """Raises `OutOfMemoryError` when a step failed half-way."""
        if self._step is not None:
            raise OutOfMemoryError(
                f"step {self._step}: failed after the update of {self._written} tensors had begun inside backward, so "
                "it cannot be repeated and the weights are between two steps; continue from the last checkpoint "
                "(--resume) with a smaller per_device_train_batch_size or gradient_checkpointing, or with "
                "method.clipping: exact, which writes nothing before the whole gradient is known"
            )
