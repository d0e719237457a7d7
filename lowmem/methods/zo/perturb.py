"""Forward passes at `W + eps z` that never write into the weights.

The textbook scheme adds eps z in place, subtracts 2 eps z and adds eps z again; in bf16 that walk drifts by 12 % of the
weights' norm in 1000 cycles without any update. Here each module that owns a trained parameter computes with a scratch
copy: built just before its forward from the seed, dropped just after, also on exceptions. Weights are bit-identical
by construction and the extra memory is one matrix, reused from module to module. An embedding builds only the rows
that its input asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lowmem.errors import FormatError
from lowmem.kernels.dispatch import perturbed, update_
from lowmem.kernels.reference import stream_key
from lowmem.methods.zo.scratch import Scratch, padded_bytes

Kind = Literal["rademacher", "gaussian"]


@dataclass(frozen=True)
class Direction:
    """Names one random direction over all trained parameters: z is a function of (run seed, step, probe, name)."""

    step: int
    probe: int = 0


@dataclass(frozen=True)
class _Slot:
    """One module attribute that holds a trained parameter."""

    module: nn.Module
    attribute: str
    name: str
    parameter: nn.Parameter


class Perturber:
    """Reads the model at perturbed weights and moves the weights along seeded directions.

    `parameters`: trained parameters by canonical name, ties once. Owns the scratch memory, one
    module's parameters, until `release`.
    """

    def __init__(self, model: nn.Module, parameters: dict[str, nn.Parameter], *, seed: int, kind: Kind) -> None:
        self.parameters = parameters
        self._seed = seed
        self._kind: Kind = kind
        names = {id(p): name for name, p in parameters.items()}
        self._slots: dict[nn.Module, list[_Slot]] = {}
        for module in model.modules():
            slots = [
                _Slot(module, attribute, names[id(p)], p)
                for attribute, p in module._parameters.items()
                if p is not None and id(p) in names
            ]
            if slots:
                self._slots[module] = slots
        self._scratch = Scratch(
            max((padded_bytes([s.parameter for s in slots]) for slots in self._slots.values()), default=0)
        )
        self._building = False
        self._marks: list[int] = []
        self._read: set[str] = set()

    @contextmanager
    def at(self, direction: Direction, eps: float) -> Iterator[None]:
        """Inside, every forward of the model reads `W + eps z(direction)`; gradients must be disabled."""
        handles = []
        try:
            for module, slots in self._slots.items():
                handles.append(module.register_forward_pre_hook(self._swap_in(slots, direction, eps), with_kwargs=True))
                handles.append(module.register_forward_hook(self._swap_out(slots), always_call=True))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for slots in self._slots.values():
                self._swap_out(slots)()
            self._marks.clear()
            self._scratch.pop(0)

    def release(self) -> None:
        """The scratch memory, as large as the largest module's parameters, is given back."""
        self._scratch.release()

    def move_(self, terms: list[tuple[Direction, float]], *, step: int) -> None:
        """`W <- W - sum_j coef_j z_j` in one pass per tensor; bf16 and fp16 by stochastic rounding seeded by `step`."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                keyed = [(self._key(direction, name), coef) for direction, coef in terms]
                rounding = stream_key(self._seed, step, 0, name, "rounding")
                update_(parameter.data, keyed, self._kind, rounding_key=rounding)

    def check(self, forward: Callable[[], object]) -> None:
        """Runs `forward` once at perturbed weights and raises `FormatError` if the perturbation is not what it claims.

        Refused by parameter name: a trained parameter that some operation read unperturbed (read outside the forward
        of the module that owns it), and one that nothing read (it would drift by noise alone).
        """
        self._read.clear()
        with self.at(Direction(0), 0.0), _Guard(self), torch.no_grad():
            forward()
        if unread := sorted(self.parameters.keys() - self._read):
            raise FormatError(
                f"zeroth order: {unread[0]!r} ({len(unread)} in all) is never read by the forward pass, so updates "
                "would only add noise to it; use method: lora, or freeze it by training an adapter (train_adapter)"
            )

    def _key(self, direction: Direction, name: str) -> int:
        return stream_key(self._seed, direction.step, direction.probe, name)

    def _swap_in(self, slots: list[_Slot], direction: Direction, eps: float) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            self._building = True
            self._marks.append(self._scratch.mark)
            try:
                replaced = None
                for slot in slots:
                    self._read.add(slot.name)
                    key = self._key(direction, slot.name)
                    if (ids := _gathered(module, args)) is not None:
                        rows = ids.reshape(-1)
                        scratch = perturbed(slot.parameter.data, key, eps, self._kind, rows=rows)
                        replaced = (
                            (torch.arange(rows.numel(), device=ids.device).view(ids.shape), *args[1:]),
                            kwargs,
                        )
                    else:
                        out = self._scratch.push(slot.parameter.shape, slot.parameter)
                        scratch = perturbed(slot.parameter.data, key, eps, self._kind, out=out)
                    module._parameters[slot.attribute] = cast(nn.Parameter, scratch)
                return replaced
            finally:
                self._building = False

        return hook

    def _swap_out(self, slots: list[_Slot]) -> Callable[..., None]:
        def hook(*_: object) -> None:
            for slot in slots:
                slot.module._parameters[slot.attribute] = slot.parameter
            if self._marks:
                self._scratch.pop(self._marks.pop())

        return hook


def _gathered(module: nn.Module, args: tuple[Any, ...]) -> Tensor | None:
    """The ids of a plain embedding that looks up fewer rows than it has; None where the whole matrix is needed.

    `F.embedding` insists that padding_idx be a row, hence the lower bound; without gradients it has no other effect.
    """
    if type(module) is not nn.Embedding or module.max_norm is not None or not args or not isinstance(args[0], Tensor):
        return None
    fits = (module.padding_idx or 0) < args[0].numel() < module.num_embeddings
    return args[0] if fits else None


class _Guard(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises when an operation reads the storage of a trained parameter while no scratch is being built."""

    def __init__(self, perturber: Perturber) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._perturber = perturber
        self._names = {p.untyped_storage()._cdata: name for name, p in perturber.parameters.items()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._perturber._building:
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor) and (name := self._names.get(leaf.untyped_storage()._cdata)):
                    raise FormatError(
                        f"zeroth order: {name!r} is read outside the module that owns it (by {func}), where it cannot "
                        "be perturbed; use method: lora, or zo with train_adapter"
                    )
        return func(*args, **(kwargs or {}))
