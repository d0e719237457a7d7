"""What a batch file may say, and every problem in it with its line.

defaults:                          # for every job
  set: {max_steps: 100}            # keys of the run's config
jobs:
  tune:
    train: tiny-demo               # a verb, and what it works on
    matrix: {learning_rate: [1e-3, 3e-3, 1e-2]}
  check:
    eval: ${jobs.tune.output_dir}  # one for each of the three
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, ValidationError, field_validator

from lowmem.batch.verbs import COMMAND, KINDS
from lowmem.config.base import Section
from lowmem.config.explain import did_you_mean
from lowmem.config.yaml_source import Node, read_yaml, to_plain
from lowmem.errors import ConfigError
from lowmem.units import parse_bytes

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_DURATION = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(s|m|h|d|)\s*")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

Axis = Annotated[tuple[Any, ...], Field(min_length=1)]


def parse_seconds(value: str | float) -> float:
    """Seconds of `90`, `"90s"`, `"30m"`, `"2h"`, `"1d"`. Raises `ConfigError` for anything else, and for zero."""
    match = _DURATION.fullmatch(str(value))
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if seconds <= 0:
        raise ConfigError(f"{value!r} is not a duration; write for example 90s, 30m, 2h")
    return seconds


class JobDefaults(Section):
    """What every job may say. `set`: keys of the run's config, for `train` and `plan`."""

    set: dict[str, Any] = Field(default_factory=dict)
    env: dict[str, str] = Field(default_factory=dict)
    tags: tuple[str, ...] = ()
    retries: NonNegativeInt = 0
    timeout: str | float | None = None
    memory: str | None = None

    @field_validator("timeout")
    @classmethod
    def _timeout_is_a_duration(cls, value: str | float | None) -> str | float | None:
        return value if value is None else _checked(parse_seconds, value)

    @field_validator("memory")
    @classmethod
    def _memory_is_a_size(cls, value: str | None) -> str | None:
        return value if value is None else _checked(parse_bytes, value)


class Search(Section):
    """Trials of a training job whose settings are drawn, the worse ones stopped early (ASHA). Ray engine only."""

    space: dict[str, dict[str, tuple[Any, ...]]]
    """For each key of the config one of {choice: […]}, {uniform: [a, b]}, {log_uniform: [a, b]}, {integer: [a, b]}."""
    trials: PositiveInt = 8
    metric: str = "loss"
    maximize: bool = False
    reduction: Annotated[int, Field(ge=2)] = 3
    """At every rung the best 1 / reduction of the trials go on."""
    grace: PositiveInt = 1
    """Evaluations that every trial gets."""
    seed: NonNegativeInt = 0

    @field_validator("space")
    @classmethod
    def _draws_are_known(cls, space: dict[str, dict[str, tuple[Any, ...]]]) -> dict[str, dict[str, tuple[Any, ...]]]:
        for key, draw in space.items():
            kind, values = next(iter(draw.items()), ("", ()))
            wanted = 1 if kind == "choice" else 2
            if len(draw) != 1 or kind not in DRAWS or len(values) < wanted or (wanted == 2 and len(values) != 2):
                raise ValueError(f"{key}: is drawn by one of {', '.join(DRAWS)}, such as {{log_uniform: [1e-5, 1e-2]}}")
        if not space:
            raise ValueError("is empty; name at least one key, such as learning_rate: {log_uniform: [1e-5, 1e-2]}")
        return space


DRAWS = ("choice", "uniform", "log_uniform", "integer")


class JobSpec(JobDefaults):
    """One job of the file; `matrix` and `zip` make several of it."""

    kind: str
    target: str | tuple[str, ...]
    args: dict[str, Any] | tuple[Any, ...] = ()
    """Options of the verb: {dataset: dev.jsonl, limit: 100} is --dataset dev.jsonl --limit 100."""
    matrix: dict[str, Axis] = Field(default_factory=dict)
    zip: dict[str, Axis] = Field(default_factory=dict)
    after: str | tuple[str, ...] = ()
    output_dir: str | None = None
    search: Search | None = None

    @field_validator("zip")
    @classmethod
    def _paired(cls, axes: dict[str, Axis]) -> dict[str, Axis]:
        lengths = {key: len(values) for key, values in axes.items()}
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{key} has {length}" for key, length in lengths.items())
            raise ValueError(f"pairs its lists entry by entry, so they must be equally long; {said}")
        return axes


class BatchSpec(Section):
    """A whole file."""

    output_dir: str | None = None
    """Folder of the jobs' folders. Default: runs/ and the name of the file."""
    memory_budget: str | None = None
    """What all jobs that run at a time may need together. Default: all memory of the device."""
    max_parallel: PositiveInt | None = None
    """Jobs at a time. Default: one for each CPU."""
    continue_on_error: bool = True
    """false: after a failure nothing new is started."""
    defaults: JobDefaults = JobDefaults()
    jobs: Annotated[dict[str, JobSpec], Field(min_length=1)]

    @field_validator("memory_budget")
    @classmethod
    def _budget_is_a_size(cls, value: str | None) -> str | None:
        return value if value is None else _checked(parse_bytes, value)


@dataclass(frozen=True)
class BatchFile:
    """A checked file, and where each of its jobs is written."""

    path: Path
    spec: BatchSpec
    lines: dict[str, str]


def load_batch(path: Path) -> BatchFile:
    """The batch of a file. Raises `ConfigError` that lists every problem with its line."""
    root = read_yaml(path)
    problems: list[tuple[str, str]] = []
    jobs = root.entries.get("jobs")
    written = {} if jobs is None else {name: _with_kind(name, node, problems) for name, node in jobs.entries.items()}
    if jobs is not None and isinstance(jobs.value, dict):
        root = root.with_entries({**root.entries, "jobs": jobs.with_entries(written)})
    try:
        spec = BatchSpec.model_validate(to_plain(root))
    except ValidationError as error:
        problems += [_problem(item, root) for item in error.errors(include_url=False)]
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(f"{where}: {text}" for where, text in problems)))
    return BatchFile(path, spec, {name: node.where for name, node in written.items()})


def _with_kind(name: str, node: Node, problems: list[tuple[str, str]]) -> Node:
    """`train: CONFIG` as `kind: train, target: CONFIG`."""
    if not NAME.fullmatch(name):
        problems.append((node.where, f"jobs.{name}: a name is made of letters, digits, _ and -"))
    given = [kind for kind in KINDS if kind in node.entries]
    if len(given) != 1:
        said = f"says {' and '.join(given)}" if given else "does not say what to do"
        unknown = next((key for key in node.entries if key not in JobSpec.model_fields), "")
        near = did_you_mean(unknown, KINDS) if not given else ""
        problems.append((node.where, f"jobs.{name}: {said}; write one of {', '.join(KINDS)}{near}"))
        given = given[:1] or [COMMAND]
    rest = {key: value for key, value in node.entries.items() if key not in KINDS}
    target = node.entries.get(given[0], Node("-", node.where))
    if target.value is None or target.value in ("", []):
        problems.append((target.where, f"jobs.{name}.{given[0]}: is empty; say what it works on"))
    if given[0] != COMMAND and isinstance(target.value, list):
        problems.append((target.where, f"jobs.{name}.{given[0]}: is a list; name one config, model or run"))
    return Node({"kind": Node(given[0], node.where), "target": target, **rest}, node.where)


def _problem(item: Any, root: Node) -> tuple[str, str]:
    """(where, text) of one of pydantic's errors."""
    path = [part for part in item["loc"] if not (isinstance(part, str) and ("[" in part or part in ("str", "float")))]
    node, place = root, root
    for part in path:
        inner = node.entries.get(str(part))
        if inner is None:
            break
        node = place = inner
    key = ".".join(map(str, path)) or "the file"
    match item["type"]:
        case "extra_forbidden":
            fields = _fields(path)
            return (
                place.where,
                f"{key}: is not a key{did_you_mean(str(path[-1]), fields)}; there are {', '.join(fields)}",
            )
        case "missing":
            return place.where, f"{key}: is required"
        case "value_error":
            return place.where, f"{key}: {item['ctx']['error']}"
        case _:
            return place.where, f"{key}: {item['msg'][:1].lower()}{item['msg'][1:]}"


def _fields(path: list[Any]) -> list[str]:
    """The keys that could have stood in place of the last part of `path`."""
    model: type[BaseModel] = BatchSpec
    if path[0] == "defaults":
        model = JobDefaults
    elif path[0] == "jobs":
        model = Search if "search" in path[:-1] else JobSpec
    names = [name for name in model.model_fields if name not in ("kind", "target")]
    return [*KINDS, *names] if model is JobSpec else names


def _checked(parse: Any, value: Any) -> Any:
    """`value` again. Raises `ValueError` with the sentence of `parse`."""
    try:
        parse(value)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return value
