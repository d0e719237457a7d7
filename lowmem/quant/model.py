"""A whole decoder, block by block: each block is calibrated on what the blocks before it, already coded, put out.

The inputs of the first block and the other arguments of every block (masks, position embeddings: shared between
blocks) are captured in one forward pass of the calibration text. Then, for each block: one pass with hooks sums second
moments of its linear inputs (one matrix for q, k and v, which share their input), its linears are coded and their
weights replaced *in place* by what the codes decode to, and a second pass makes the next block's inputs. Memory
beside the model: the hidden states of the text, one block's moments, one matrix's fit.

Each finished block goes to a `WeightStore`; a second run with the same store loads it instead.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowmem.errors import ConfigError
from lowmem.quant.codec import Kind
from lowmem.quant.format import digest
from lowmem.quant.hessian import SecondMoment
from lowmem.quant.quantize import QuantizedWeight, QuantizeOptions, dequantize, quantize_table, quantize_weight
from lowmem.quant.store import WeightStore

OptionsFor = Callable[[str], QuantizeOptions | None]
"""Options of the linear of this name; None leaves it as it is."""
Progress = Callable[[str, QuantizedWeight], None]
"""Called with each weight when it is coded or loaded."""


@dataclass
class Calls:
    """What each block was called with, for one batch."""

    hidden: Tensor
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]]


def decoder_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """(name, blocks): the longest list of modules that hold linears. Raises `ConfigError` without one."""
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and any(isinstance(inner, nn.Linear) for inner in module.modules())
    ]
    if not lists:
        raise ConfigError(
            f"{type(model).__name__} has no list of blocks with linear layers; it cannot be coded by block"
        )
    return max(lists, key=lambda pair: len(pair[1]))


def block_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear layer of every block, by name."""
    return dict(_linears(*decoder_blocks(model)))


def fingerprint(model: nn.Module, batches: Sequence[Mapping[str, Tensor]], options_for: OptionsFor) -> str:
    """sha256 of the block weights, the calibration batches, and the options of every linear."""
    name, blocks = decoder_blocks(model)
    weights = {key: digest(value) for key, value in blocks.state_dict().items()}
    texts = [{key: digest(value) for key, value in batch.items()} for batch in batches]
    options = {linear: _as_json(options_for(linear)) for linear, _ in _linears(name, blocks)}
    return hashlib.sha256(json.dumps([weights, texts, options], sort_keys=True).encode()).hexdigest()


@torch.no_grad()
def quantize_blocks(
    model: nn.Module,
    batches: Sequence[Mapping[str, Tensor]],
    options_for: OptionsFor,
    store: WeightStore,
    *,
    on_weight: Progress = lambda name, weight: None,
    workers: int = 1,
) -> None:
    """Code every block's linears; the model holds the decoded weights after, the store the codes.

    `batches` are keyword arguments of the model (input_ids, attention_mask). `workers` matrices are coded at a time,
    each in a thread: the same bits, and as many fits in memory. Raises `ConfigError` without batches.
    """
    if not batches:
        raise ConfigError("quantizing needs calibration text: no batch was given")
    root, blocks = decoder_blocks(model)
    model.eval()
    calls = [capture(model, blocks, batch) for batch in batches]
    for index, block in enumerate(blocks):
        part, prefix = f"block-{index:03d}", f"{root}.{index}"
        weights = store.load(part)
        if weights is None:
            weights = _code_block(prefix, block, index, calls, options_for, workers)
            store.save(part, weights)
        for name, weight in weights.items():
            linear = model.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            linear.weight.copy_(dequantize(weight))
            on_weight(name, weight)
        for call in calls:
            call.hidden = _forward(block, call, index)


@torch.no_grad()
def quantize_embeddings(
    model: nn.Module,
    kind: Kind,
    store: WeightStore,
    *,
    group_size: int = 64,
    on_weight: Progress = lambda name, weight: None,
) -> None:
    """Code the token embeddings and, where it has weights of its own, the head: `kind` int4 or int8, unrotated.

    A tied head shares the coded table. Part `embeddings` of the store.
    """
    tables = dict(tables_of(model))
    weights = store.load("embeddings")
    if weights is None:
        weights = {name: quantize_table(table.data, kind, group_size=group_size) for name, table in tables.items()}
        store.save("embeddings", weights)
    for name, weight in weights.items():
        tables[name].copy_(dequantize(weight))
        on_weight(name, weight)


def tables_of(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """(module name, weight) of the embedding and of a head that is not tied to it."""
    seen: set[int] = set()
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):  # type: ignore[operator]
        if module is not None and id(module.weight) not in seen:
            seen.add(id(module.weight))
            yield next(name for name, other in model.named_modules() if other is module), module.weight


def _linears(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for name, inner in module.named_modules():
        if isinstance(inner, nn.Linear):
            yield f"{prefix}.{name}", inner


def _code_block(
    prefix: str, block: nn.Module, index: int, calls: Sequence[Calls], options_for: OptionsFor, workers: int
) -> dict[str, QuantizedWeight]:
    wanted = {name: (linear, options_for(name)) for name, linear in _linears(prefix, block)}
    chosen = {name: (linear, options) for name, (linear, options) in wanted.items() if options is not None}
    moments = _moments({name: linear for name, (linear, _) in chosen.items()}, block, index, calls)

    def code(name: str) -> QuantizedWeight:
        linear, options = chosen[name]
        with torch.no_grad():  # a thread begins with gradients on
            return quantize_weight(linear.weight, moments[name].value(), options)

    if workers == 1:  # in this thread, where whoever counts memory sees it
        return {name: code(name) for name in chosen}
    largest_first = sorted(chosen, key=lambda name: -chosen[name][0].weight.numel())
    with ThreadPoolExecutor(max_workers=workers) as pool:
        coded = dict(zip(largest_first, pool.map(code, largest_first), strict=True))
    return {name: coded[name] for name in chosen}


def moments_of(block: nn.Module, index: int, calls: Sequence[Calls]) -> dict[str, SecondMoment]:
    """Second moments of the inputs of every linear of block `index`, by name within it; shared where inputs are."""
    return _moments(dict(_linears("", block)), block, index, calls)


def _moments(
    linears: Mapping[str, nn.Linear], block: nn.Module, index: int, calls: Sequence[Calls]
) -> dict[str, SecondMoment]:
    """Second moments by linear; linears that always see the same tensor share one."""
    sums: dict[tuple[str, ...], SecondMoment] = {}
    for call in calls:
        with _inputs_of(linears) as inputs:
            _forward(block, call, index)
        for group in _sharing(inputs):
            moment = sums.setdefault(group, SecondMoment(inputs[group[0]].shape[-1]))
            moment.add_(inputs[group[0]])
    return {name: _merged(name, [moment for group, moment in sums.items() if name in group]) for name in linears}


def _merged(name: str, parts: Sequence[SecondMoment]) -> SecondMoment:
    """One moment from the groups that a linear was in: more than one only where sharing differs between batches."""
    if not parts:
        raise ConfigError(
            f"{name} saw no calibration text (an expert never chosen?): leave it out or calibrate on more"
        )
    if len(parts) == 1:
        return parts[0]
    whole = SecondMoment(parts[0].sum.shape[0])
    for part in parts:
        whole.sum += part.sum
        whole.rows += part.rows
    return whole


def _sharing(inputs: Mapping[str, Tensor]) -> list[tuple[str, ...]]:
    groups: dict[int, list[str]] = {}
    for name, tensor in inputs.items():
        groups.setdefault(id(tensor), []).append(name)
    return [tuple(group) for group in groups.values()]


@contextmanager
def _inputs_of(linears: Mapping[str, nn.Linear]) -> Iterator[dict[str, Tensor]]:
    """The input of each linear during the forward pass inside."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, arguments: seen.__setitem__(name, arguments[0])

    handles = [linear.register_forward_pre_hook(keep(name)) for name, linear in linears.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def capture(model: nn.Module, blocks: Iterable[nn.Module], batch: Mapping[str, Tensor]) -> Calls:
    """One forward pass, without the head, that keeps the first block's input and every block's other arguments."""
    hidden: list[Tensor] = []
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def keep(module: nn.Module, positional: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if not hidden:
            hidden.append(positional[0] if positional else keywords["hidden_states"])
        others = {key: value for key, value in keywords.items() if key != "hidden_states"}
        arguments.append((positional[1:], others))

    handles = [block.register_forward_pre_hook(keep, with_kwargs=True) for block in blocks]
    try:
        body: Any = getattr(model, "base_model", model)
        body(**batch, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return Calls(hidden[0], arguments)


def _forward(block: nn.Module, call: Calls, index: int) -> Tensor:
    positional, keywords = call.arguments[index]
    output = block(call.hidden, *positional, **keywords)
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


def _as_json(options: QuantizeOptions | None) -> Any:
    return None if options is None else asdict(options)
