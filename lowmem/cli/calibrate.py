"""`lowmem calibrate`: whether a model of two precisions should plan, only be rescued, or decode in high precision."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from lowmem.cli import render
from lowmem.cli.arguments import AsJson, Device, MaxNewTokens, Seed, Target, Temperature, check_device


def calibrate(
    target: Target,
    problems: Annotated[Path, typer.Argument(help='A JSONL file of {"prompt" or "messages": …, "answer": …}.')],
    kind: Annotated[str, typer.Option(help="How answers are compared: number, boxed, option, gsm8k, qa.")] = "number",
    fallback: Annotated[str, typer.Option(metavar="nested|RUN_OR_MODEL", help="The high precision.")] = "nested",
    limit: Annotated[int, typer.Option(min=10, help="Use this many problems.")] = 50,
    batch_size: Annotated[int, typer.Option(min=1, help="Problems decoded together.")] = 8,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Choose the policy for a model and a task; `--outline auto` then follows it.

    Every problem is answered in high precision, in low precision, and in low precision after an outline.

    Example: lowmem calibrate runs/math-2bit problems.jsonl --kind boxed --fallback nested
    """
    from lowmem.jobs.calibrate import calibrate as run_calibrate

    with render.progress() as sink:
        choice, found = run_calibrate(
            target,
            problems,
            kind=kind,
            fallback=fallback,
            limit=limit,
            batch_size=batch_size,
            changes={"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed},
            device=check_device(device),
            sink=sink,
        )
    if as_json:
        render.result_json({**dataclasses.asdict(choice), "calibration": dataclasses.asdict(found)})
    else:
        render.result(f"{choice.policy}: {choice.reason}")
