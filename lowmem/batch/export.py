"""A batch as files for other schedulers: array scripts for Slurm, pipelines for SkyPilot. Pure text.

Slurm: one array for each level of the dependencies, each level after the one before has ended. SkyPilot: jobs that
depend on each other are one pipeline, in order. Both start training with `--resume` where its folder holds a run, so a
job that is requeued goes on. Run folders must lie on storage that all jobs share; afterwards `lowmem batch import`
brings them into the ledger.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import yaml

from lowmem.batch.task import Task, words_of
from lowmem.batch.verbs import COMMAND, VERBS
from lowmem.errors import ConfigError

DEFAULT_HOURS = 24


def slurm(tasks: Mapping[str, Task], *, name: str, gpus: int) -> dict[str, str]:
    """The files by name: configs, one array script a level, and `submit.sh`. `gpus` are for each job."""
    _refuse_searches(tasks)
    files = _configs(tasks)
    submit = ["#!/bin/bash", f"# Submits {name}: {len(tasks)} jobs.", "set -eu", 'cd "$(dirname "$0")"']
    for number, level in enumerate(_levels(tasks)):
        script = f"level-{number}.sbatch"
        files[script] = _array(level, name=f"{name}-{number}", gpus=gpus)
        after = "" if number == 0 else ' --dependency="afterany:$id"'
        submit.append(f"id=$(sbatch --parsable{after} {script})")
    files["submit.sh"] = "\n".join([*submit, 'echo "submitted; the last array is $id"', ""])
    return files


def skypilot(tasks: Mapping[str, Task], *, name: str, gpu: str | None) -> dict[str, str]:
    """The files by name: configs, and a pipeline for each group of jobs that depend on each other."""
    _refuse_searches(tasks)
    files = _configs(tasks)
    for number, group in enumerate(_groups(tasks)):
        own = f"{name}-{number}"
        documents = [{"name": own}, *(_sky_task(task, gpu) for task in group)]
        if len(group) == 1:
            documents = documents[1:]
        text = yaml.safe_dump_all(documents, sort_keys=False, width=110)
        files[f"{own}.yaml"] = f"# sky jobs launch {own}.yaml\n{text}"
    return files


def _array(level: Sequence[Task], *, name: str, gpus: int) -> str:
    """One array script: what its jobs need is what the largest of them needs."""
    need = max((task.need or 0 for task in level), default=0)
    seconds = max(task.job.timeout or DEFAULT_HOURS * 3600 for task in level)
    lines = ["#!/bin/bash", f"#SBATCH --job-name={name}", f"#SBATCH --array=0-{len(level) - 1}"]
    lines += ["#SBATCH --cpus-per-task=1", f"#SBATCH --time={max(1, round(seconds / 60))}", "#SBATCH --requeue"]
    lines += [f"#SBATCH --gpus={gpus}"] if gpus else [f"#SBATCH --mem={max(1, need // 2**20)}M"] if need else []
    lines += ["#SBATCH --output=%x-%a.log", "set -eu", 'case "$SLURM_ARRAY_TASK_ID" in']
    for index, task in enumerate(level):
        lines += [f"{index}) # {task.job.name}", *(f"  {line}" for line in _script(task)), "  ;;"]
    return "\n".join([*lines, "esac", ""])


def _sky_task(task: Task, gpu: str | None) -> dict[str, object]:
    resources: dict[str, object] = {"accelerators": gpu} if gpu else {"cpus": "1+"}
    if gpu is None and task.need:
        resources["memory"] = f"{max(1, -(-task.need // 2**30))}+"
    return {
        "name": task.job.name.replace("=", "-").replace("_", "-").replace(".", "-").lower(),
        "resources": resources,
        "workdir": ".",
        "envs": dict(task.job.env),
        "setup": "pip install lowmem",
        "run": "\n".join(["set -eu", *_script(task, env=False)]) + "\n",
    }


def _script(task: Task, *, env: bool = True) -> list[str]:
    """The job as lines of a shell script."""
    job = task.job
    lines = [f"export {key}={shlex.quote(value)}" for key, value in job.env.items()] if env else []
    lines.append(f"export LOWMEM_JOB={shlex.quote(job.name)} LOWMEM_OUTPUT_DIR={shlex.quote(job.output_dir)}")
    if job.kind == COMMAND:
        lines.append(f"mkdir -p {shlex.quote(job.output_dir)}")
        lines.append(job.target if isinstance(job.target, str) else shlex.join(job.target))
        return lines
    verb, argv = VERBS[job.kind], ["lowmem", job.kind]
    if task.config is not None:
        argv += [_config_name(task), *job.args]
    else:
        argv += words_of(job)
    command = shlex.join(argv)
    if verb.resumes:
        folder = shlex.quote(str(PurePosixPath(job.output_dir) / "config.yaml"))
        command += f" $(test -f {folder} && echo --resume || true)"
    return [*lines, command]


def _configs(tasks: Mapping[str, Task]) -> dict[str, str]:
    return {_config_name(task): task.config for task in tasks.values() if task.config is not None}


def _config_name(task: Task) -> str:
    return f"configs/{task.job.name}.yaml"


def _levels(tasks: Mapping[str, Task]) -> list[list[Task]]:
    """Jobs whose dependencies are all in earlier levels."""
    levels: list[list[Task]] = []
    placed: set[str] = set()
    while len(placed) < len(tasks):
        level = [task for name, task in tasks.items() if name not in placed and placed.issuperset(task.job.after)]
        levels.append(level)
        placed |= {task.job.name for task in level}
    return levels


def _groups(tasks: Mapping[str, Task]) -> list[list[Task]]:
    """Jobs that depend on each other, each group in an order that can be run."""
    group = {name: name for name in tasks}

    def root(name: str) -> str:
        return name if group[name] == name else root(group[name])

    for name, task in tasks.items():
        for other in task.job.after:
            group[root(name)] = root(other)
    ordered = [task for level in _levels(tasks) for task in level]
    roots = dict.fromkeys(root(name) for name in tasks)
    return [[task for task in ordered if root(task.job.name) == own] for own in roots]


def _refuse_searches(tasks: Mapping[str, Task]) -> None:
    for name, task in tasks.items():
        if task.search is not None:
            raise ConfigError(f"batch export: {name} is a search, which Ray runs; use `lowmem batch run --engine ray`")
