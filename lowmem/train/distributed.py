"""Data parallel training: `torchrun --nproc-per-node N -m lowmem train …`, over gloo (CPU) or nccl (GPU).

Every process runs the same loop over the same data and takes the micro-batches whose turn is its own, so an effective
batch holds `per_device_train_batch_size` x `gradient_accumulation_steps` x N examples. Only process 0 writes the run
folder. Weights never travel (with `fsdp` they do, layer by layer: `methods/fully_sharded.py`): each process makes the
same update, and every `HASH_STEPS` steps all compare a hash of what each holds whole, and stop if one differs. Zeroth
order exchanges B numbers a probe, first order its gradients.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from lowmem.data.batch import Batch
from lowmem.errors import ConfigError, DivergenceError
from lowmem.methods.base import Method, MethodState, StepReport
from lowmem.methods.sharding import ShardedLoss, SharedProbes, fingerprint, is_sharded, refuse_unless_shardable, trained
from lowmem.methods.zo.zeroth_order import ZerothOrder
from lowmem.models.loss import LossFn
from lowmem.train.checkpoint import Checkpoint
from lowmem.train.delta import DeltaStore

HASH_STEPS = 100
"""Steps between two comparisons of the weights; one reads every trained byte."""


class Group:
    """The processes of this run; a single one unless torchrun started it."""

    def __init__(self, rank: int = 0, world: int = 1, local_rank: int = 0) -> None:
        self.rank, self.world, self.local_rank = rank, world, local_rank

    @classmethod
    def join(cls, device: torch.device) -> Group:
        """The group that torchrun's environment names, joined. Raises `ConfigError` when the environment is partial."""
        if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
            return cls()
        missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise ConfigError(f"WORLD_SIZE is set and {missing[0]} is not; start several processes with torchrun")
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_RANK"]))

    @property
    def leads(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    def device(self, wanted: torch.device) -> torch.device:
        """The GPU of this process where the run uses GPUs, or `wanted`."""
        if wanted.type != "cuda" or self.world == 1:
            return wanted
        device = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(device)
        return device

    def sum_(self, tensor: Tensor) -> None:
        if self.world > 1:
            dist.all_reduce(tensor)

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def either(self, flag: bool, device: torch.device) -> bool:
        """Whether `flag` is true in at least one process."""
        if self.world == 1:
            return flag
        count = torch.tensor(float(flag), device=device)
        self.sum_(count)
        return bool(count > 0)

    def leave(self) -> None:
        """The group is dissolved; nothing may be summed afterwards."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


class DataParallel:
    """A `Method` that makes `method`'s step together with the other processes of `group`.

    `even`: all of them must run the model equally often, see `ShardedLoss`. Raises `ConfigError` for a method whose
    step cannot be split.
    """

    def __init__(self, method: Method, group: Group, *, even: bool = False, hash_steps: int = HASH_STEPS) -> None:
        refuse_unless_shardable(method)
        self._even = even
        self._method, self._group, self._hash_steps = method, group, hash_steps

    @property
    def title(self) -> str:
        return f"{self._method.title}, {self._group.world} processes"

    @property
    def trainable(self) -> dict[str, Tensor]:
        return self._method.trainable

    def step(self, loss_fn: LossFn, micro_batches: Sequence[Batch], *, lr: float, step: int) -> StepReport:
        if step % self._hash_steps == 0:
            self._compare(step)
        shared: LossFn
        if isinstance(self._method, ZerothOrder):
            shared = SharedProbes(loss_fn, self._group, micro_batches)
        else:
            shared = ShardedLoss(loss_fn, self._group, trained(self._method), even=self._even)
        return self._method.step(shared, micro_batches, lr=lr, step=step)

    def rehearse(self, loss_fn: LossFn, micro_batches: Sequence[Batch]) -> None:
        self._method.rehearse(loss_fn, micro_batches)

    def state(self) -> MethodState:
        return self._method.state()

    def load_state(self, state: MethodState) -> None:
        self._method.load_state(state)

    def export(self, folder: Path) -> None:
        self._method.export(folder)

    def _compare(self, step: int) -> None:
        """Raises `DivergenceError` unless all processes hold the same bytes of what is whole in each."""
        tensors = [t for t in self._method.trainable.values() if not is_sharded(t)]
        own = fingerprint(tensors)
        hashes = torch.zeros(self._group.world, dtype=torch.int64, device=tensors[0].device)
        hashes[self._group.rank] = own
        self._group.sum_(hashes)
        others = [rank for rank, value in enumerate(hashes.tolist()) if value != hashes[0]]
        if others:
            raise DivergenceError(
                f"step {step}: the weights of process {others[0]} differ from those of process 0; the processes must "
                "run the same code on the same kind of device. The last checkpoint is good: go on with --resume"
            )


class Follower(DeltaStore):
    """Reads what process 0 writes, and writes nothing."""

    def save(self, checkpoint: Checkpoint, *, best: int | None) -> Path:
        return self.path(checkpoint.step)
