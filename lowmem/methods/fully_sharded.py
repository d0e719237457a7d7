"""Decoder layers cut over the processes of a run: each holds its share and gathers a layer while it computes (FSDP2).

Over N processes each holds 1 / N of the layers' weights and, where they are trained, of their gradients and state, and
one whole layer at a time. Embeddings, the final norm and the head stay whole in every process, since the loss calls the
head in chunks outside of the model's forward; so do adapters, which are small: rules that look at both of their
factors work as ever. Gathering a layer is a collective call, so every process must run the same number of forwards:
one that has no micro-batch left runs another's again, at weight zero (`ShardedLoss`).

Checkpoints hold whole tensors, in process 0 alone. Loading needs the whole model in every process for a moment.
Only rules that treat every entry alone can work on a share (`config/coherence.py` refuses the others).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lowmem.config.method import FullMethod
from lowmem.config.run import RunConfig
from lowmem.errors import ConfigError
from lowmem.methods.accumulate import gradient_norm
from lowmem.methods.prepared import Prepared
from lowmem.methods.sharding import Shards, is_sharded
from lowmem.quant.model import decoder_blocks
from lowmem.quant.modules import packed_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def shard_(config: RunConfig, model: PreTrainedModel, prepared: Prepared, shards: Shards | None) -> Prepared:
    """The layers of `model` are cut over the processes; returns how to train and export what is left here.

    Raises `ConfigError` in a single process and for packed layers.
    """
    if shards is None or shards.world == 1:
        raise ConfigError(
            "fsdp: cuts the model over several processes, and this run has one; start it with "
            "`torchrun --nproc-per-node N -m lowmem train …`, or set fsdp: false"
        )
    if packed_layers(model):
        raise ConfigError(
            "fsdp: the model is packed by lowmem quantize, and codes cannot be cut by rows; start several processes "
            "without fsdp: a packed base is small in each of them"
        )
    full = isinstance(config.method, FullMethod)
    shard_layers(model, shards.world, keep=[] if full else [p for p in model.parameters() if p.requires_grad])
    exporter = partial(export_whole, model, shards) if full else _first_alone(prepared.exporter, shards)
    return dataclasses.replace(prepared, exporter=exporter, layout=Sharded(shards))


def shard_layers(model: PreTrainedModel, world: int, *, keep: Iterable[nn.Parameter]) -> None:
    """Every decoder layer holds a share of its parameters, `keep` apart; their gradients are sums over processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    decoder: Any = model.base_model
    _, blocks = decoder_blocks(decoder)
    mesh = init_device_mesh(next(model.parameters()).device.type, (world,))
    whole = set(keep)
    for block in blocks:
        fully_shard(block, mesh=mesh, ignored_params=whole)
    cut = {id(p) for p in blocks.parameters()}
    fully_shard(decoder, mesh=mesh, ignored_params=whole | {p for p in decoder.parameters() if id(p) not in cut})
    for module in decoder.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


class Sharded:
    """`Layout` of parameters of which some are cut by rows."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    def part(self, tensor: Tensor) -> Tensor:
        local: Any = tensor
        return local.to_local() if is_sharded(tensor) else tensor

    def norm(self, parameters: Iterable[nn.Parameter]) -> float:
        """Shares of cut gradients are summed over processes, the others are the same in all."""
        every = list(parameters)
        cut = [p.grad for p in every if p.grad is not None and is_sharded(p)]
        same = gradient_norm(p for p in every if not is_sharded(p))
        squares = [self.part(g).norm(dtype=torch.float32).double().square() for g in cut]
        total = torch.stack(squares).sum() if squares else torch.zeros((), dtype=torch.float64)
        self._shards.sum_(total)
        return math.sqrt(float(total) + same * same)

    def stream(self, parameter: Tensor) -> int:
        return self._shards.rank if is_sharded(parameter) else 0

    def whole(self, part: Tensor, parameter: Tensor) -> Tensor:
        """On the CPU of process 0; the others, which write nothing, get a tensor without memory."""
        found = part
        if is_sharded(parameter):
            from torch.distributed.tensor import DTensor

            like: Any = parameter
            cut = DTensor.from_local(
                part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
            )
            found = cut.full_tensor()
        return found.cpu() if self._shards.rank == 0 else torch.empty_like(found, device="meta")

    def take(self, whole: Tensor, parameter: Tensor) -> Tensor:
        if not is_sharded(parameter):
            return whole
        from torch.distributed.tensor import distribute_tensor

        like: Any = parameter
        here = whole.to(self.part(parameter).device)
        cut: Any = distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None)
        part: Tensor = cut.to_local()
        return part


def export_whole(model: PreTrainedModel, shards: Shards, folder: Path) -> None:
    """The model as a transformers folder, written by process 0; called by all, which hand over their shares."""
    layout = Sharded(shards)
    state = {name: layout.whole(layout.part(tensor), tensor) for name, tensor in model.state_dict().items()}
    if shards.rank == 0:
        model.save_pretrained(str(folder), state_dict=state)


def _first_alone(exporter: Callable[[Path], None], shards: Shards) -> Callable[[Path], None]:
    def export(folder: Path) -> None:
        if shards.rank == 0:
            exporter(folder)

    return export
