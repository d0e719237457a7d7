"""Arguments and options that several verbs share.

The schema is imported inside functions: building it takes longer than `lowmem --help` may.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from lowmem.errors import ConfigError

if TYPE_CHECKING:
    from lowmem.config.generation import GenerationConfig
    from lowmem.config.load import LoadedRun
    from lowmem.jobs.target import DtypeName

Target = Annotated[
    str, typer.Argument(metavar="RUN_OR_MODEL", help="A run folder, a model folder, a hub id or an embedded model.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys that replace those of the config.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to run.")]
MaxNewTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens. [default: the run's]")]
Temperature = Annotated[float | None, typer.Option(min=0.0, help="0 is greedy. [default: the run's]")]
TopP = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help="Keep the likeliest tokens up to this share. [default: the run's]"),
]
TopK = Annotated[
    int | None, typer.Option(min=0, help="Keep this many likeliest tokens; 0 keeps all. [default: the run's]")
]
Stop = Annotated[list[str] | None, typer.Option(help="End the answer before this text; may be repeated.")]
OnLoop = Annotated[
    str | None,
    typer.Option(
        metavar="continue|stop|rescue",
        help="What happens to an answer that repeats itself or never ends its thinking. [default: the run's]",
    ),
]
FallbackTo = Annotated[
    str | None,
    typer.Option(
        "--fallback",
        metavar="nested|RUN_OR_MODEL",
        help="What a rescue without an answer decodes with: the second planes of nested weights, or a second model.",
    ),
]
Outline = Annotated[
    str | None,
    typer.Option(
        metavar="off|on|auto",
        help="Write an outline in high precision (--fallback) first; auto: as `lowmem calibrate` chose. "
        "[default: the run's]",
    ),
]
ThinkingBudget = Annotated[
    int | None, typer.Option(min=1, help="Tokens after which thinking is closed. [default: the run's]")
]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of the sampling. [default: the run's]")]


def split_config(first: str, rest: list[str] | None) -> tuple[str | None, list[str]]:
    """(config or None, overrides): the first argument is an override when it reads like one and names no file."""
    others = list(rest or ())
    if "=" in first and not os.path.exists(first):
        return None, [first, *others]
    return first, others


def load_config(name: str | None, changes: list[str]) -> LoadedRun:
    """The config of a file or preset under the changes; of the changes alone when `name` is None."""
    from lowmem.config.load import load_run
    from lowmem.config.presets import find_config

    return load_run(None if name is None else find_config(name), changes)


def generation(base: GenerationConfig, **given: object) -> GenerationConfig:
    """`base` with what was given on the command line. Raises `ConfigError` naming the option."""
    from pydantic import ValidationError

    from lowmem.config.generation import GenerationConfig

    changes = {key: value for key, value in given.items() if value is not None and value != []}
    try:
        return GenerationConfig.model_validate({**base.model_dump(), **changes})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"--{option} {first['input']}: {first['msg'].lower()}") from error


def rescue_for(fallback: str | None, on_loop: str | None) -> str | None:
    """`on_loop`, which a fallback turns to rescue. Raises `typer.BadParameter` where it was asked to be another."""
    if fallback is None:
        return on_loop
    if on_loop not in (None, "rescue"):
        raise typer.BadParameter(
            f"it is what a rescue decodes with, and --on-loop {on_loop} has none; leave one of them out",
            param_hint="--fallback",
        )
    return "rescue"


def check_dtype(dtype: str | None) -> DtypeName | None:
    """`dtype` again. Raises `typer.BadParameter` for anything but fp32, bf16, fp16 and None."""
    known: dict[str, DtypeName] = {"fp32": "fp32", "bf16": "bf16", "fp16": "fp16"}
    if dtype is None or dtype in known:
        return None if dtype is None else known[dtype]
    raise typer.BadParameter(f"{dtype!r} is not a dtype; use fp32, bf16 or fp16", param_hint="--dtype")


def check_device(device: str) -> str:
    """`device` again. Raises `typer.BadParameter` for anything but auto, cpu and cuda."""
    if device not in ("auto", "cpu", "cuda"):
        raise typer.BadParameter(f"{device!r} is not a device; use auto, cpu or cuda", param_hint="--device")
    return device
