"""The jobs of a file, each with its settings, its folder, and the jobs it waits for: pure functions.

A job that mentions `${jobs.other.output_dir}` waits for `other`, and is made once for each that `other` was made into:
train over three rates, and an eval that mentions it, are three chains of two. `after: other` only waits.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lowmem.batch.spec import BatchFile, JobSpec, Search, parse_seconds
from lowmem.batch.verbs import COMMAND, VERBS
from lowmem.config.explain import did_you_mean
from lowmem.errors import ConfigError
from lowmem.units import parse_bytes

Point = dict[str, Any]
_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")
LONGEST_VALUE = 40


@dataclass(frozen=True)
class Job:
    """One thing to run. `target` is a config, a model, or a command; `sets` are `key=value`; `args` are options.

    `point`: what the matrix chose, for this job or one that it follows. `base`: its name in the file.
    """

    name: str
    base: str
    kind: str
    target: str | tuple[str, ...]
    sets: tuple[str, ...]
    args: tuple[str, ...]
    env: Mapping[str, str]
    after: tuple[str, ...]
    output_dir: str
    point: Point
    tags: tuple[str, ...]
    retries: int
    timeout: float | None
    memory: int | None
    search: Search | None


def expand(file: BatchFile) -> list[Job]:
    """Every job, those of the file in its order. Raises `ConfigError` for names and references that lead nowhere."""
    root = file.spec.output_dir or f"runs/{file.path.stem}"
    made: dict[str, list[Job]] = {}
    for base in _in_order(file):
        made[base] = list(_instances(base, file, made, root))
    jobs = [job for base in file.spec.jobs for job in made[base]]
    _check_apart(jobs, file)
    return jobs


def _in_order(file: BatchFile) -> list[str]:
    """Names of the file's jobs, each behind those that it waits for."""
    jobs = file.spec.jobs
    waits = {base: _mentions(base, file) | set(_after(spec)) for base, spec in jobs.items()}
    for base, names in waits.items():
        for name in names - jobs.keys():
            raise ConfigError(
                f"{file.lines[base]}: jobs.{base}: waits for {name}, which is no job{did_you_mean(name, jobs)}; "
                f"there are {', '.join(jobs)}"
            )
    order: list[str] = []
    while len(order) < len(jobs):
        ready = [base for base in jobs if base not in order and waits[base] <= set(order)]
        if not ready:
            stuck = [base for base in jobs if base not in order]
            raise ConfigError(
                f"{file.lines[stuck[0]]}: jobs.{', '.join(stuck)}: wait for each other; remove one `after`"
            )
        order += ready
    return order


def _after(spec: JobSpec) -> tuple[str, ...]:
    return (spec.after,) if isinstance(spec.after, str) else spec.after


def _mentions(base: str, file: BatchFile) -> set[str]:
    """Jobs whose folder `base` mentions. Raises `ConfigError` for a reference that is of no known form."""
    spec, found = file.spec.jobs[base], set()
    axes = {**spec.matrix, **spec.zip}
    for text in _references(spec):
        kind, _, rest = text.partition(".")
        if kind == "jobs" and rest.endswith(".output_dir"):
            found.add(rest.removesuffix(".output_dir"))
        elif text != "output_dir" and kind != "matrix":
            raise ConfigError(
                f"{file.lines[base]}: jobs.{base}: ${{{text}}} means nothing; write ${{jobs.NAME.output_dir}}, "
                f"${{matrix.KEY}} or ${{output_dir}}{did_you_mean(text, [f'matrix.{key}' for key in axes])}"
            )
    return found


def _references(spec: JobSpec) -> list[str]:
    whole = [spec.target, spec.set, spec.args, spec.env, list(spec.matrix.values()), list(spec.zip.values())]
    return [text for string in _strings(whole) for text in _REFERENCE.findall(string)]


def _strings(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case Mapping():
            for item in value.values():
                yield from _strings(item)
        case list() | tuple():
            for item in value:
                yield from _strings(item)


def _instances(base: str, file: BatchFile, made: Mapping[str, list[Job]], root: str) -> Iterator[Job]:
    """The jobs that the file's job `base` stands for."""
    spec = file.spec.jobs[base]
    mentioned = sorted(_mentions(base, file))
    for chosen in itertools.product(*(made[name] for name in mentioned)):
        inherited: Point = {}
        if not all(_agree(inherited, job.point) and inherited.update(job.point) is None for job in chosen):
            continue
        for own in _points(spec):
            if twice := inherited.keys() & own.keys():
                key = min(twice)
                raise ConfigError(f"{file.lines[base]}: jobs.{base}: {key} is varied by {mentioned[0]} already")
            yield _job(base, file, {**inherited, **own}, own, dict(zip(mentioned, chosen, strict=True)), made, root)


def _agree(one: Point, other: Point) -> bool:
    """Whether two points are the same where both say something."""
    return all(one[key] == other[key] for key in one.keys() & other.keys())


def _points(spec: JobSpec) -> list[Point]:
    """Every combination of the matrix with every entry of the zip."""
    paired = [dict(zip(spec.zip, values, strict=True)) for values in zip(*spec.zip.values(), strict=True)] or [{}]
    grid = [dict(zip(spec.matrix, values, strict=True)) for values in itertools.product(*spec.matrix.values())]
    return [{**one, **pair} for one in grid for pair in paired]


def _job(
    base: str,
    file: BatchFile,
    point: Point,
    own: Point,
    upstream: Mapping[str, Job],
    made: Mapping[str, list[Job]],
    root: str,
) -> Job:
    spec, defaults = file.spec.jobs[base], file.spec.defaults
    name = "-".join([base, *(f"{key.rpartition('.')[2]}={_short(value)}" for key, value in point.items())])
    folder = spec.output_dir or f"{root}/{name}"
    known = {f"jobs.{other}.output_dir": job.output_dir for other, job in upstream.items()}
    known |= {f"matrix.{key}": value for key, value in point.items()} | {"output_dir": folder}

    def filled(value: Any) -> Any:
        try:
            return _fill(value, known)
        except KeyError as error:
            raise ConfigError(
                f"{file.lines[base]}: jobs.{base}: ${{{error.args[0]}}} names no key of this job's matrix; "
                f"there are {', '.join(point) or 'none'}"
            ) from error

    waits = [job.name for job in upstream.values()]
    waits += [job.name for other in _after(spec) for job in made[other] if _agree(point, job.point)]
    timeout = spec.timeout if spec.timeout is not None else defaults.timeout
    memory = spec.memory or defaults.memory
    target = filled(spec.target)
    return Job(
        name=name,
        base=base,
        kind=spec.kind,
        target=target if isinstance(target, str) else tuple(map(str, target)),
        sets=tuple(_sets(base, file, own, filled)),
        args=tuple(_options(filled(spec.args))),
        env={key: str(value) for key, value in filled({**defaults.env, **spec.env}).items()},
        after=tuple(dict.fromkeys(waits)),
        output_dir=filled(folder),
        point=point,
        tags=tuple(dict.fromkeys((*defaults.tags, *spec.tags))),
        retries=spec.retries if "retries" in spec.model_fields_set else defaults.retries,
        timeout=None if timeout is None else parse_seconds(timeout),
        memory=None if memory is None else parse_bytes(memory),
        search=spec.search,
    )


def _sets(base: str, file: BatchFile, own: Point, filled: Any) -> Iterator[str]:
    """`key=value` of the defaults, the job, and its own point, later ones winning.

    A key of the matrix that is mentioned as `${matrix.key}` does its work there and is no key of the config.
    """
    spec = file.spec.jobs[base]
    verb = VERBS.get(spec.kind)
    mentioned = set(_references(spec))
    varied = {key: value for key, value in own.items() if f"matrix.{key}" not in mentioned}
    if verb is None or not verb.overrides:
        for key in [*spec.set, *varied]:
            raise ConfigError(
                f"{file.lines[base]}: jobs.{base}: {spec.kind} takes no key=value, so {key} would change nothing; "
                f"use it in {COMMAND if verb is None else 'args'} as ${{matrix.{key}}}"
            )
        return
    common = file.spec.defaults.set if verb.takes == "config" else {}
    for key, value in _flat({**_flat(common), **_flat(spec.set), **varied}).items():
        yield f"{key}={json.dumps(filled(value), ensure_ascii=False)}"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{method: {lora_r: 8}}` as `{"method.lora_r": 8}`."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def _options(args: Any) -> Iterator[str]:
    """`{limit: 5, raw: true, stop: [a, b]}` as it is typed. A list is taken as it stands."""
    if not isinstance(args, Mapping):
        yield from map(str, args)
        return
    for key, value in args.items():
        option = f"--{key.replace('_', '-')}"
        for item in value if isinstance(value, list | tuple) else [value]:
            if item is True:
                yield option
            elif item is not False and item is not None:
                yield from (option, str(item))


def _fill(value: Any, known: Mapping[str, Any]) -> Any:
    """`value` with its references replaced. One that is all of a text keeps the type of what it names."""
    match value:
        case str():
            whole = _REFERENCE.fullmatch(value)
            return known[whole[1]] if whole else _REFERENCE.sub(lambda match: str(known[match[1]]), value)
        case Mapping():
            return {key: _fill(item, known) for key, item in value.items()}
        case list() | tuple():
            return [_fill(item, known) for item in value]
        case _:
            return value


def _short(value: Any) -> str:
    """The value as part of the name of a folder."""
    text = str(value).lower() if isinstance(value, bool) or value is None else str(value)
    if isinstance(value, Mapping):
        text = "+".join(str(item) for item in value.values())
    return _UNSAFE.sub("_", text).strip("_")[-LONGEST_VALUE:] or "none"


def _check_apart(jobs: list[Job], file: BatchFile) -> None:
    """Raises `ConfigError` where two jobs would have one name or one folder."""
    names: dict[str, Job] = {}
    folders: dict[str, Job] = {}
    for job in jobs:
        if job.name in names:
            raise ConfigError(
                f"{file.lines[job.base]}: jobs.{job.base}: makes two jobs named {job.name}; vary them more"
            )
        if job.output_dir in folders:
            other = folders[job.output_dir].name
            raise ConfigError(
                f"{file.lines[job.base]}: jobs.{job.base}.output_dir: {job.output_dir} is the folder of {other} too; "
                f"use ${{matrix.KEY}} in it"
            )
        names[job.name] = folders[job.output_dir] = job
