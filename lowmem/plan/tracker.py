"""Counts the bytes of live tensor storages, by phase and by component, on real and on fake tensors alike.

A storage is counted from the moment an operation returns a tensor over it until the last tensor over it is gone; views
cost nothing. What happens inside one operation (an attention kernel's workspace, a matmul's repacked operand) is not
seen: it belongs to the device constants of `lowmem.plan.devices`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

WEIGHTS = "weights"
ADAPTER = "adapter"
GRADIENTS = "gradients"
OPTIMIZER = "optimizer state"
LOGITS = "logits"
KV_CACHE = "KV cache"
SCRATCH = "perturbed scratch"
WORKING = "activations"
TEMPORARIES = "temporaries"
COMPONENTS = (WEIGHTS, ADAPTER, GRADIENTS, OPTIMIZER, KV_CACHE, LOGITS, SCRATCH, WORKING, TEMPORARIES)

_WORKING_PHASES = frozenset({"forward", "backward", "evaluate", "generate"})


@dataclass(frozen=True)
class Peak:
    """The largest sum of live bytes seen at one place, and what it was made of."""

    nbytes: int = 0
    components: dict[str, int] = field(default_factory=dict)


@dataclass
class _Storage:
    nbytes: int
    component: str
    watch: weakref.ref[Any]


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode: inside `with tracker:` every storage that an operation makes is counted while it lives.

    `vocabulary`: tensors whose last dimension it is count as logits. `granularity`: sizes are rounded up to it, as
    an allocator does. What exists before is counted once handed to `track` or `track_module`.
    """

    def __init__(self, *, vocabulary: int | None = None, granularity: int = 1) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._vocabulary = vocabulary
        self._granularity = granularity
        self._storages: dict[int, _Storage] = {}
        self._live: dict[str, int] = {}
        self._current = 0
        self._place = ("outside", "")
        self._places: dict[tuple[str, str], Peak] = {}

    @property
    def current(self) -> int:
        """Bytes alive now."""
        return self._current

    @property
    def components(self) -> dict[str, int]:
        """Bytes alive now, by component."""
        return {name: nbytes for name, nbytes in self._live.items() if nbytes}

    @property
    def peaks(self) -> dict[str, int]:
        """Largest number of live bytes in each phase."""
        return {name: peak.nbytes for name, peak in self.bills.items()}

    @property
    def bills(self) -> dict[str, Peak]:
        """The peak of each phase with its components."""
        worst: dict[str, Peak] = {}
        for (phase, _), peak in self._places.items():
            if peak.nbytes >= worst.get(phase, Peak()).nbytes:
                worst[phase] = peak
        return worst

    @property
    def places(self) -> dict[tuple[str, str], Peak]:
        """The peak of each (phase, part); parts are layers of the model where `mark` named them."""
        return dict(self._places)

    def reset(self) -> None:
        """Peaks start again from what is alive now."""
        self._places.clear()
        self._note_peak()

    def mark(self, phase: str, part: str = "") -> None:
        """From here on, peaks belong to `phase` and `part`."""
        self._place = (phase, part)
        self._note_peak()

    def mark_part(self, part: str) -> None:
        """From here on, peaks belong to `part` of the phase that is going on."""
        self.mark(self._place[0], part)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Peaks inside belong to `name`; afterwards to what they belonged to before."""
        before = self._place
        self.mark(name)
        try:
            yield
        finally:
            self.mark(*before)

    def track(self, tensor: Tensor, component: str) -> None:
        """The storage of `tensor` counts as `component`, newly or in place of what it counted as."""
        storage = tensor.untyped_storage()
        known = self._storages.get(storage._cdata)
        if known is None:
            self._add(storage, component)
        elif known.component != component:
            self._live[known.component] -= known.nbytes
            self._live[component] = self._live.get(component, 0) + known.nbytes
            known.component = component

    def track_module(self, module: nn.Module) -> None:
        """Parameters, buffers and the statistics of quantized layers are counted; ties once."""
        for name, parameter in module.named_parameters():
            self.track(parameter, ADAPTER if "lora_" in name else WEIGHTS)
        for tensor in (*module.buffers(), *quantization_statistics(module)):
            self.track(tensor, WEIGHTS)

    def watch_gradients(self, parameters: Iterable[nn.Parameter]) -> Callable[[], None]:
        """Gradients count as gradients as soon as they are accumulated; returns what undoes the watching."""
        trained: list[Any] = [p for p in parameters if p.requires_grad]  # the hook is untyped in torch
        handles = [p.register_post_accumulate_grad_hook(self._accumulated) for p in trained]

        def remove() -> None:
            for handle in handles:
                handle.remove()

        return remove

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_iter(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self._storages:
                    self._add(storage, self._component(func, leaf))
        return out

    def _accumulated(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.track(parameter.grad, GRADIENTS)

    def _component(self, func: Any, tensor: Tensor) -> str:
        if getattr(func, "namespace", "") == "lowmem":
            return SCRATCH
        phase = self._place[0]
        if phase not in _WORKING_PHASES:
            return TEMPORARIES
        if func is torch.ops.aten.empty.memory_format and tensor.dtype == torch.uint8:
            return SCRATCH  # raw memory that a perturbation is written into
        wide = tensor.dim() > 1 and tensor.shape[-1] == self._vocabulary
        return LOGITS if wide else WORKING

    def _add(self, storage: Any, component: str) -> None:
        key, unit = storage._cdata, self._granularity
        nbytes = -(-storage.nbytes() // unit) * unit
        self._storages[key] = _Storage(nbytes, component, weakref.ref(storage, lambda _: self._drop(key)))
        self._live[component] = self._live.get(component, 0) + nbytes
        self._current += nbytes
        self._note_peak()

    def _drop(self, key: int) -> None:
        gone = self._storages.pop(key)
        self._live[gone.component] -= gone.nbytes
        self._current -= gone.nbytes

    def _note_peak(self) -> None:
        known = self._places.get(self._place)
        if known is None or self._current > known.nbytes:
            self._places[self._place] = Peak(self._current, self.components)


def quantization_statistics(module: nn.Module) -> Iterator[Tensor]:
    """Scales and code books that bitsandbytes keeps outside parameters and buffers."""
    for layer in module.modules():
        weight = layer._parameters.get("weight")
        state = getattr(weight, "quant_state", None)
        nested = getattr(state, "state2", None)
        holders = (state, nested, weight, getattr(layer, "state", None))
        for holder in holders:
            for name in ("absmax", "code", "offset", "CB", "SCB"):
                tensor = getattr(holder, name, None)
                if isinstance(tensor, Tensor):
                    yield tensor


class PhasedLoss:
    """A loss function that marks in `tracker` what a method's step is doing: forward, backward, update.

    The forward begins with each call and ends with its return; the backward ends when autograd has finished. It
    changes nothing else, so it serves a real run as well as a plan.
    """

    def __init__(self, loss_fn: Callable[[Any], Any], tracker: LiveBytes) -> None:
        self._loss_fn = loss_fn
        self._tracker = tracker

    def __call__(self, batch: Any) -> Any:
        self._tracker.mark("forward")
        sums = self._loss_fn(batch)
        if sums.per_example.requires_grad:
            sums.per_example.register_hook(self._backward_began)
        self._tracker.mark("backward" if sums.per_example.requires_grad else "update", "head")
        return sums

    def _backward_began(self, grad: Tensor) -> None:
        self._tracker.mark("backward", "head")
        engine: Any = torch.autograd.Variable._execution_engine  # untyped in torch
        engine.queue_callback(lambda: self._tracker.mark("update"))
