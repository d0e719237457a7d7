"""What a run folder holds, read piece by piece: what is absent or damaged is named, and the rest is still used."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from lowmem.errors import ConfigError, FormatError
from lowmem.train.record import read_metrics

REASONING = "reasoning.json"
"""What `lowmem eval --reasoning` found, by dataset."""

T = TypeVar("T")
Record = dict[str, Any]


@dataclass(frozen=True)
class PhaseMemory:
    """Bytes of one phase; `predicted` is None when nothing was planned."""

    phase: str
    predicted: int | None
    measured: int


@dataclass(frozen=True)
class Sample:
    """One prompt answered before and after training; what was not recorded is None."""

    prompt: str | None
    before: str | None
    after: str | None
    reference: str | None


@dataclass(frozen=True)
class RunFolder:
    """The pieces of a run. `problems` says in words which ones are missing or cannot be read."""

    name: str
    config_text: str | None
    config: Record
    records: list[Record]
    environment: Record | None
    plan: Record | None
    memory: list[PhaseMemory]
    samples: list[Sample]
    reasoning: Record
    problems: list[str]


def read_run_folder(folder: Path) -> RunFolder:
    """The run in `folder`. Raises `ConfigError` when the folder holds no run at all."""
    if not any((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl")):
        raise ConfigError(f"{folder} is not a run folder: it has neither config.yaml nor metrics.jsonl")
    problems: list[str] = []

    def piece(name: str, parse: Callable[[Path], T], *, consequence: str | None) -> T | None:
        """The parsed piece; `consequence` says what the report lacks without it, None when a run need not have it."""
        path = folder / name
        if not path.is_file():
            if consequence is not None:
                problems.append(f"{name} is missing: {consequence}.")
            return None
        try:
            return parse(path)
        except (OSError, ValueError, RecursionError, yaml.YAMLError, FormatError) as error:
            problems.append(f"{name} cannot be read: {error}")
            return None

    text = piece("config.yaml", _text, consequence="what was asked for is not known")
    return RunFolder(
        name=folder.resolve().name,
        config_text=text,
        config=piece("config.yaml", _mapping_of_yaml, consequence=None) or {},
        records=piece("metrics.jsonl", read_metrics, consequence="there are no curves and no results") or [],
        environment=piece("env.json", _object, consequence="versions and hardware are not known"),
        plan=piece("plan.json", _object, consequence=None),
        memory=piece("memory.json", _memory, consequence=None) or [],
        samples=piece("samples.jsonl", _samples, consequence=None) or [],
        reasoning=piece(REASONING, _reasoning, consequence=None) or {},
        problems=problems,
    )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _mapping_of_yaml(path: Path) -> Record:
    content = yaml.safe_load(_text(path))
    if not isinstance(content, dict):
        raise FormatError("it holds no keys")
    return content


def _object(path: Path) -> Record:
    content = json.loads(_text(path))
    if not isinstance(content, dict):
        raise FormatError("it holds no object")
    return content


def _reasoning(path: Path) -> Record:
    content = _object(path)
    for name, one in content.items():
        rows = one.get("rows") if isinstance(one, dict) else None
        if not isinstance(rows, list) or not {"outcomes", "loop_rate", "median_tokens"} <= one.keys():
            raise FormatError(f"{name!r} is no report of `lowmem eval --reasoning`")
    return content


def _memory(path: Path) -> list[PhaseMemory]:
    phases = []
    for name, entry in _object(path).items():
        predicted = entry.get("predicted") if isinstance(entry, dict) else None
        measured = entry.get("measured") if isinstance(entry, dict) else None
        if not isinstance(measured, int) or not isinstance(predicted, int | None):
            raise FormatError(f"{name!r} has no bytes in predicted and measured")
        phases.append(PhaseMemory(name, predicted, measured))
    return phases


def _samples(path: Path) -> list[Sample]:
    samples = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        entry = json.loads(line)
        if not isinstance(entry, dict):
            raise FormatError(f"line {number} holds no object")
        fields = (entry.get(name) for name in ("prompt", "before", "after", "reference"))
        samples.append(Sample(*(None if field is None else str(field) for field in fields)))
    return samples
