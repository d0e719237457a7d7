"""`lowmem plan`: what every way of training would take, before anything is loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

import torch

from lowmem.config.method import FullMethod
from lowmem.config.run import RunConfig
from lowmem.events import Notice, Sink
from lowmem.models.embedded import cache_folder
from lowmem.models.pretraining import pretraining_of
from lowmem.models.source import pick_device
from lowmem.plan.devices import CPU, CUDA, Device, parse_device
from lowmem.plan.fit import Plan
from lowmem.plan.plan import plan_run, shape_of
from lowmem.plan.serving import KV_DTYPES, ServingBill, predict_serving
from lowmem.units import parse_bytes


def plan(
    config: RunConfig,
    *,
    sink: Sink,
    budget: str | None = None,
    device: str | None = None,
    tokens: int | None = None,
    use_cache: bool = True,
) -> Plan:
    """The table for `config`. The budget is the one given, else the config's, else all memory of the device.

    `device`: `cpu`, `cuda`, `cuda:24GiB`; without one, the device that the config would run on here. Raises
    `ConfigError` for a device or a size that is none, and what loading the model's config raises.
    """
    config = with_default_optimizer(config, sink)
    where = parse_device(device) if device is not None else this_device(config.device)
    text = budget or config.memory_budget
    limit = parse_bytes(text) if text else where.total or memory_here(where.costs.kind)
    return plan_run(config, where, budget=limit, cache=plan_cache() if use_cache else None, sink=sink, tokens=tokens)


def plan_serving(
    config: RunConfig, *, budget: str | None, device: str | None, slots: int, context: int
) -> tuple[list[ServingBill], int]:
    """What serving `slots` requests of `context` tokens takes, for each way of storing the cache; and the budget."""
    where = parse_device(device) if device is not None else this_device(config.device)
    text = budget or config.memory_budget
    limit = parse_bytes(text) if text else where.total or memory_here(where.costs.kind)
    shape = shape_of(config)
    bills = [
        predict_serving(config, shape, where, slots=slots, context=context, kv_dtype=kv_dtype) for kv_dtype in KV_DTYPES
    ]
    return bills, limit


def with_default_optimizer(config: RunConfig, sink: Sink) -> RunConfig:
    """`config` with the optimizer that pretrained its model, where that is known and the config names none.

    For full finetuning only: adapters start from nothing, and the other methods have rules of their own.
    """
    if "optimizer" in config.model_fields_set or not isinstance(config.method, FullMethod):
        return config
    known = pretraining_of(config.model)
    if known is None or known.optimizer == config.optimizer.kind:
        return config
    sink(Notice(f"optimizer: {known.optimizer}, as in pretraining ({known.source}); set optimizer to choose another"))
    chosen = config.model_dump(mode="json", exclude_unset=True) | {"optimizer": {"kind": known.optimizer}}
    return RunConfig.model_validate_json(json.dumps(chosen))


def plan_cache() -> Path:
    """Where predictions are kept between calls."""
    return cache_folder() / "plans"


def this_device(name: str) -> Device:
    """The device that `auto`, `cpu` or `cuda` means here, with its memory."""
    kind: Literal["cuda", "cpu"] = "cuda" if pick_device(name).type == "cuda" else "cpu"
    return Device(CUDA if kind == "cuda" else CPU, memory_here(kind))


def memory_here(kind: Literal["cuda", "cpu"]) -> int:
    """All memory of this machine's first GPU, or of the machine."""
    if kind == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
