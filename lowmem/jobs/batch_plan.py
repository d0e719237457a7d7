"""Every job of a batch checked and planned before any of them starts."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowmem.batch.matrix import Job, expand
from lowmem.batch.spec import BatchFile
from lowmem.batch.task import SearchOrder, Task, digest
from lowmem.batch.verbs import COMMAND, VERBS
from lowmem.config.load import dump_run, load_run
from lowmem.config.method import LoraMethod, ZoMethod
from lowmem.config.presets import find_config
from lowmem.config.run import RunConfig
from lowmem.errors import BudgetError, ConfigError
from lowmem.events import Notice, Sink
from lowmem.jobs.plan import memory_here, plan_cache, this_device
from lowmem.plan.cache import cached_predict
from lowmem.plan.plan import is_auto, resolve_auto, shape_of, work_of
from lowmem.units import format_bytes, parse_bytes

UNUSED_DATA = {"format": "procedural", "family": "add"}
INFERENCE = {"kind": "zo", "algorithm": "mezo"}
"""Plans of jobs that only use a model: zeroth order needs the memory of inference and one matrix."""


@dataclass(frozen=True)
class Bill:
    """Predicted bytes of the device; `too_large` is the whole bill where they exceed the budget."""

    nbytes: int | None
    too_large: str | None = None


def budget_of(file: BatchFile, given: str | None) -> int:
    """Bytes that all running jobs may need together: what was given, else the file's, else all of the device."""
    text = given or file.spec.memory_budget
    return parse_bytes(text) if text else memory_here(this_device("auto").costs.kind)


def make_tasks(file: BatchFile, *, budget: int, sink: Sink) -> dict[str, Task]:
    """All jobs of the file by name, ready to run. Raises `ConfigError` with the problems of all of them at once."""
    jobs = expand(file)
    by_name = {job.name: job for job in jobs}
    configs: dict[str, RunConfig] = {}
    problems: list[str] = []
    for job in jobs:
        try:
            if config := _config(job, by_name, file, sink, budget):
                configs[job.name] = config
        except ConfigError as error:
            problems.append("\n".join(f"{job.name}: {line}" for line in str(error).splitlines()))
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    tasks: dict[str, Task] = {}
    for job in _upstream_first(jobs):
        bill = _bill(job, tasks, configs, budget, sink)
        text = dump_run(configs[job.name]) if job.name in configs else None
        known = digest(job, text, [tasks[name].digest for name in job.after])
        order = None if job.search is None else _search(job, configs[job.name], bill, budget)
        total = bill.nbytes if order is None or bill.nbytes is None else bill.nbytes * order.at_once
        tasks[job.name] = Task(job, text, known, total, bill.too_large, order)
    return {job.name: tasks[job.name] for job in jobs}


def _upstream_first(jobs: Sequence[Job]) -> list[Job]:
    order: dict[str, Job] = {}
    while len(order) < len(jobs):
        order |= {job.name: job for job in jobs if job.name not in order and all(name in order for name in job.after)}
    return list(order.values())


def _config(job: Job, jobs: Mapping[str, Job], file: BatchFile, sink: Sink, budget: int) -> RunConfig | None:
    """The resolved config of a verb that takes one. What is left to the planner is planned for the batch's budget."""
    verb = VERBS.get(job.kind)
    if job.search is not None and job.kind != "train":
        raise ConfigError(f"search: {job.kind} has no settings to search; it belongs to a train job")
    if verb is None or verb.takes != "config":
        return None
    output = [f"output_dir={job.output_dir}"] if verb.output == "output_dir=" else []
    loaded = load_run(_file(str(job.target), file), [*job.sets, *output])
    for notice in loaded.notices:
        sink(Notice(f"{job.name}: {notice}"))
    config = loaded.config
    if job.search is not None:
        _check_search(job, config, file)
    if is_auto(config) and config.memory_budget is None:
        return config.model_copy(update={"memory_budget": str(budget)})
    return config


def _search(job: Job, config: RunConfig, bill: Bill, budget: int) -> SearchOrder:
    """The search of a job, with as many trials at once as fit and have a CPU."""
    assert job.search is not None
    at_once = min(job.search.trials, os.cpu_count() or 1, max(1, budget // (bill.nbytes or budget)))
    evaluations = math.ceil((config.max_steps or 0) / (config.eval_steps or 1))
    return SearchOrder("", job.output_dir, job.search.model_dump(mode="json"), evaluations, bill.nbytes, at_once)


def _check_search(job: Job, config: RunConfig, file: BatchFile) -> None:
    """Raises `ConfigError` unless every draw of the job's search is a config, and there is something to judge it by."""
    assert job.search is not None
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("search: needs Ray Tune; run `pip install 'lowmem[ray]'`")
    if config.max_steps is None or config.eval_steps is None or not config.eval_dataset:
        raise ConfigError("search: trials are judged by their evaluations; set eval_dataset, eval_steps and max_steps")
    for place in (0, -1):
        drawn = [
            f"{key}={json.dumps(values[place])}" for key, draw in job.search.space.items() for values in draw.values()
        ]
        load_run(_file(str(job.target), file), [*job.sets, *drawn])


def _file(target: str, file: BatchFile) -> Path:
    """A path, one beside the batch file, or a preset."""
    beside = file.path.parent / target
    return beside if not os.path.exists(target) and beside.is_file() else find_config(target)


def _bill(job: Job, tasks: Mapping[str, Task], configs: Mapping[str, RunConfig], budget: int, sink: Sink) -> Bill:
    """What the job will need: as it says itself, else as planned; what uses another's result needs as much as that."""
    if job.memory is not None:
        return _judged(job.memory, f"memory: {format_bytes(job.memory)}", budget)
    if job.kind == "plan" or job.kind == COMMAND:
        return Bill(None)
    config = configs.get(job.name)
    if config is not None:
        return _planned(_with_known_model(config, tasks, configs), budget, sink)
    upstream = [task for task in tasks.values() if str(job.target).startswith(task.job.output_dir)]
    if upstream:
        return Bill(upstream[-1].need, upstream[-1].too_large)
    base = {"model": str(job.target), "dataset": UNUSED_DATA, "method": INFERENCE}
    return _planned(load_run(None, base=base).config, budget, sink)


def _with_known_model(config: RunConfig, tasks: Mapping[str, Task], configs: Mapping[str, RunConfig]) -> RunConfig:
    """`config` on the model that the chain of jobs began with: those in between change weights, not the shape."""
    for task in reversed(list(tasks.values())):
        if config.model.startswith(task.job.output_dir):
            before = configs.get(task.job.name)
            config = config.model_copy(update={"model": str(task.job.target) if before is None else before.model})
    return config


def _planned(config: RunConfig, budget: int, sink: Sink) -> Bill:
    device = this_device(config.device)
    if is_auto(config) or config.memory_budget is not None:
        own = None if config.memory_budget is None else parse_bytes(config.memory_budget)
        limit = budget if own is None else min(own, budget)
        try:
            _, plan = resolve_auto(config, device, budget=limit, cache=plan_cache(), sink=sink)
        except BudgetError as error:
            return Bill(None, str(error))
        assert plan is not None, "there is a budget"
        assert plan.chosen is not None, "resolve_auto raises otherwise"
        return Bill(plan.chosen.total)
    work = work_of(config, config.per_device_train_batch_size)
    found = cached_predict(config, shape_of(config), work, granularity=device.costs.granularity, folder=plan_cache())
    method = config.method
    adapters = isinstance(method, LoraMethod) or (isinstance(method, ZoMethod) and method.train_adapter is not None)
    total = device.bill(found.peak.nbytes, adapters=adapters)
    phases = sorted(found.phases.items(), key=lambda item: -item[1].nbytes)
    lines = [f"{name} {format_bytes(peak.nbytes)}" for name, peak in phases]
    return _judged(
        total, f"the process itself {format_bytes(device.bill(0, adapters=adapters))}, {', '.join(lines)}", budget
    )


def _judged(total: int, bill: str, budget: int) -> Bill:
    if total <= budget:
        return Bill(total)
    return Bill(total, f"needs {format_bytes(total)} of {format_bytes(budget)} ({bill})")
