"""Forward passes at `W + eps z` that never write into the weights.

The textbook scheme adds eps z in place, subtracts 2 eps z and adds eps z again; in bf16 that walk drifts by 12 % of the
weights' norm in 1000 cycles without any update. Here each module that owns a trained parameter computes with a scratch
copy: built just before its forward from the seed, dropped just after, also on exceptions. Weights are bit-identical
by construction and the extra memory is the largest hidden matrix, reused from module to module: embeddings build only
the rows that their input asks for, and the output head a piece of the vocabulary at a time (`rows.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lowmem.errors import FormatError
from lowmem.kernels.dispatch import perturbed, replay_
from lowmem.kernels.noise import Kind
from lowmem.kernels.reference import stream_key
from lowmem.methods.zo.form import Form, descend_along_
from lowmem.methods.zo.rows import VocabularyRows
from lowmem.methods.zo.scratch import ALIGNMENT, Scratch, padded_bytes


@dataclass(frozen=True)
class Direction:
    """Names one random direction over all trained parameters: z is a function of (run seed, step, probe, name)."""

    step: int
    probe: int = 0


SMALLEST_PIECE = 2**18
"""Bytes of a piece of the vocabulary where a model has hidden matrices smaller than that."""


@dataclass(frozen=True)
class Slot:
    """One place that modules read a trained tensor from: `put(tensor)` makes them read another."""

    name: str
    parameter: Tensor
    put: Callable[[Any], None]
    vocabulary: bool = False
    """A lookup table or an output head, of which few rows are needed at a time."""


class Perturber:
    """Reads the model at perturbed weights and moves the weights along seeded directions.

    `parameters`: trained tensors by canonical name, ties once. `slots`: where each module reads them, its own
    parameters unless given. Owns the scratch memory, one module's parameters, until `release`.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: dict[str, nn.Parameter],
        *,
        seed: int,
        kind: Kind,
        slots: dict[nn.Module, list[Slot]] | None = None,
    ) -> None:
        self.parameters = parameters
        self._seed = seed
        self._kind: Kind = kind
        self._slots = slots if slots is not None else parameter_slots(model, parameters)
        hidden = [[s.parameter for s in own if not s.vocabulary] for own in self._slots.values()]
        self._piece_bytes = max([SMALLEST_PIECE, *(p.nbytes for own in hidden for p in own)])
        read_in_pieces = any(s.vocabulary for own in self._slots.values() for s in own)
        needs = [padded_bytes(own) for own in hidden] + [self._piece_bytes + ALIGNMENT] * read_in_pieces
        self._scratch = Scratch(max(needs, default=0))
        self._vocabularies = {slot.name for own in self._slots.values() for slot in own if slot.vocabulary}
        self._building = False
        self._marks: list[int] = []
        self._read: set[str] = set()

    @contextmanager
    def at(self, direction: Direction | None, eps: float) -> Iterator[None]:
        """Inside, every forward of the model reads `W + eps z(direction)`; gradients must be disabled.

        With None it reads the weights themselves, in the order in which the perturbed ones are read: loss values that
        are compared with each other then differ by the direction alone, not by how a product was split.
        """
        handles = []
        try:
            for module, slots in self._slots.items():
                if direction is None and not any(slot.vocabulary for slot in slots):
                    continue
                handles.append(module.register_forward_pre_hook(self._swap_in(slots, direction, eps)))
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

    def move_(self, terms: list[tuple[Direction, float]], *, step: int, form: Form | None = None) -> None:
        """`W <- W - sum_j coef_j z_j` in one pass per tensor, or what `form` makes of that sum; bf16 and fp16 by
        stochastic rounding seeded by `step`."""
        if form is None:
            self.replay_([(step, terms)])
            return
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                descend_along_(
                    parameter.data,
                    [(self._key(direction, name), coef) for direction, coef in terms],
                    self._kind,
                    form,
                    rounding_key=stream_key(self._seed, step, 0, name, "rounding"),
                    hidden=parameter.dim() == 2 and name not in self._vocabularies,
                )

    def replay_(self, updates: list[tuple[int, list[tuple[Direction, float]]]]) -> None:
        """`move_` for every (step, terms) of `updates`, in order, in one pass per tensor."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                keyed = [
                    (
                        [(self._key(direction, name), coef) for direction, coef in terms],
                        stream_key(self._seed, step, 0, name, "rounding"),
                    )
                    for step, terms in updates
                ]
                replay_(parameter.data, keyed, self._kind)

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

    def _swap_in(self, slots: list[Slot], direction: Direction | None, eps: float) -> Callable[..., None]:
        def hook(*_: object) -> None:
            self._marks.append(self._scratch.mark)
            for slot in slots:
                self._read.add(slot.name)
                shift = None if direction is None else (self._key(direction, slot.name), eps)
                if slot.vocabulary:
                    slot.put(VocabularyRows(_Rows(self, slot.parameter, shift), piece_bytes=self._piece_bytes))
                elif shift is not None:
                    slot.put(self._built(slot.parameter, *shift))

        return hook

    def _swap_out(self, slots: list[Slot]) -> Callable[..., None]:
        def hook(*_: object) -> None:
            for slot in slots:
                slot.put(slot.parameter)
            if self._marks:
                self._scratch.pop(self._marks.pop())

        return hook

    def _built(self, weight: Tensor, key: int, eps: float, rows: slice | None = None) -> Tensor:
        """Perturbed rows of `weight` on top of the scratch memory."""
        self._building = True
        try:
            shape = weight.shape if rows is None else (rows.stop - rows.start, *weight.shape[1:])
            return perturbed(weight.data, key, eps, self._kind, rows=rows, out=self._scratch.push(shape, weight))
        finally:
            self._building = False

    def _gathered(self, weight: Tensor, key: int, eps: float, ids: Tensor) -> Tensor:
        """New memory with the perturbed rows `ids` of `weight`."""
        self._building = True
        try:
            return perturbed(weight.data, key, eps, self._kind, rows=ids)
        finally:
            self._building = False


class _Rows:
    """The rows of one matrix for `VocabularyRows`: perturbed by `shift` = (key, eps), or as they are."""

    def __init__(self, perturber: Perturber, weight: Tensor, shift: tuple[int, float] | None) -> None:
        self._perturber = perturber
        self._weight = weight
        self._shift = shift
        self.shape, self.dtype, self.device = weight.shape, weight.dtype, weight.device

    def gather(self, ids: Tensor) -> Tensor:
        if self._shift is None:
            return self._weight.detach().index_select(0, ids)
        return self._perturber._gathered(self._weight, *self._shift, ids)

    @contextmanager
    def piece(self, rows: slice) -> Iterator[Tensor]:
        if self._shift is None:
            yield self._weight.detach()[rows]
            return
        mark = self._perturber._scratch.mark
        try:
            yield self._perturber._built(self._weight, *self._shift, rows)
        finally:
            self._perturber._scratch.pop(mark)


def parameter_slots(model: nn.Module, parameters: dict[str, nn.Parameter]) -> dict[nn.Module, list[Slot]]:
    """The trained parameters that each module of `model` owns."""
    names = {id(p): name for name, p in parameters.items()}
    head = _output_head(model)
    slots: dict[nn.Module, list[Slot]] = {}
    for module in model.modules():
        own = [
            Slot(
                names[id(p)],
                p,
                partial(module._parameters.__setitem__, attribute),
                vocabulary=attribute == "weight" and (isinstance(module, nn.Embedding) or module is head),
            )
            for attribute, p in module._parameters.items()
            if p is not None and id(p) in names
        ]
        if own:
            slots[module] = own
    return slots


def _output_head(model: nn.Module) -> nn.Module | None:
    """The plain linear layer that makes the logits, where `model` is a language model and has one."""
    found = getattr(model, "get_output_embeddings", lambda: None)()
    return found if type(found) is nn.Linear else None


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
