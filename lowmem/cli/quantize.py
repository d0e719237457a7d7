"""`lowmem quantize`: a model in 2, 3 or 4 bits, judged before it is written."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowmem.cli import render
from lowmem.cli.arguments import AsJson, Device, Overrides, Target, check_device
from lowmem.cli.evaluate import dataset_keys
from lowmem.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from lowmem.config.quantize import QuantizeConfig
    from lowmem.jobs.quantize_result import QuantizeReport


def quantize(
    target: Target,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The new folder. [default: named after the model and its bits]"),
    ] = None,
    bits: Annotated[int | None, typer.Option(help="2, 3 or 4 bits per weight. [default: 4]")] = None,
    codec: Annotated[
        str | None, typer.Option(metavar="s2|s3|s4|e8|e8r|nested", help="How weights are coded. [default: by bits]")
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="The whole file at most, for example 2.5GiB: bits per layer.")
    ] = None,
    average_bits: Annotated[
        float | None, typer.Option(help="Bits per weight of all linear layers together: bits per layer.")
    ] = None,
    rotation: Annotated[
        str | None, typer.Option(metavar="auto|none|rht|harp", help="Before coding. [default: auto]")
    ] = None,
    embeddings: Annotated[
        int | None, typer.Option(help="Bits of embeddings and head: 4, 8 or 16. [default: 8]")
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(help="Calibration text: a file, a folder, a hub id or a procedural family. [default: the run's]"),
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of it that are read. [default: 16384]")] = None,
    recover: Annotated[
        int | None, typer.Option(metavar="STEPS", min=0, help="Train an adapter on the result for this many steps.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write the model even if it fails the quality gate.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a quantized model in OUTPUT.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Show the memory it would take, and do nothing.")] = False,
    budget: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Refuse (exit 3) when it would take more, for example 12GiB.")
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Write a model in 2, 3 or 4 bits that every verb and transformers can load, after checking that it still works.

    2 bits cost quality: expect a clearly higher perplexity, and more loops from models that think. A model that lost
    too much is refused (exit 5; the limits are gate.max_divergence and others). A killed run goes on with the same
    command. `key=value` sets what has no option: gate.max_perplexity_ratio=2, calibration.max_length=1024.

    Examples: lowmem quantize runs/sst2 · lowmem quantize smollm2-135m-instruct --bits 2 --dataset text.jsonl ·
    lowmem quantize runs/chat --size 2.5GiB --plan
    """
    config = _config(
        overrides,
        model=target,
        output=None if output is None else str(output),
        bits=bits,
        codec=codec,
        size=size,
        average_bits=average_bits,
        rotation=rotation,
        embeddings=embeddings,
        dataset=None if dataset is None else [dataset_keys(name, {}) for name in dataset],
        calibration=None if tokens is None else {"tokens": tokens},
        recover=None if recover is None else {"steps": recover},
        memory_budget=budget,
        device=check_device(device),
    )
    if plan:
        _plan(config, as_json=as_json)
        return
    from lowmem.jobs.quantize import quantize as run_quantize
    from lowmem.jobs.quantize_result import as_record

    with render.progress() as sink:
        report = run_quantize(config, sink=sink, force=force, overwrite=overwrite)
    if as_json:
        render.result_json(as_record(report))
    else:
        _show(report)


def _config(overrides: list[str] | None, **given: Any) -> QuantizeConfig:
    from lowmem.config.load_quantize import load_quantize

    return load_quantize(given, overrides or ())


def _plan(config: QuantizeConfig, *, as_json: bool) -> None:
    """The bill. Raises `BudgetError` when there is a budget that it exceeds."""
    from lowmem.jobs.plan import this_device
    from lowmem.jobs.quantize import plan_quantize
    from lowmem.plan.quantizing import require_room
    from lowmem.units import parse_bytes

    with render.progress() as sink:
        bill = plan_quantize(config, sink=sink)
    overhead = this_device(config.device).bill(0)
    if as_json:
        render.result_json({**asdict(bill), "peak": bill.peak, "total": bill.peak + overhead})
    else:
        parts = {
            "weights": bill.weights,
            "calibration text": bill.hidden,
            "moments of a block": bill.moments,
            "coding one layer": bill.fit,
        }
        rows = [[name, format_bytes(nbytes)] for name, nbytes in parts.items()]
        rows += [[f"peak, {name}", format_bytes(nbytes)] for name, nbytes in bill.phases.items()]
        render.table(["quantizing", "bytes"], [*rows, ["with the process", format_bytes(bill.peak + overhead)]])
    if config.memory_budget is not None:
        require_room(bill, parse_bytes(config.memory_budget), overhead)


def _show(report: QuantizeReport) -> None:
    """What it was, what it is, and what to type next."""
    found = report.gate.closeness
    rows = [["perplexity", f"{found.perplexity_before:.4g}", f"{found.perplexity_after:.4g}"]]
    if report.unrecovered is not None:
        plain = report.unrecovered.closeness
        rows.append(["  before recovery", "", f"{plain.perplexity_after:.4g}"])
    rows += [
        ["KL divergence", "0", f"{found.divergence:.4f}"],
        ["same first choice", "100%", f"{found.agreement:.1%}"],
        ["newly broken answers", "", f"{report.gate.broken} of {len(report.gate.after)}"],
        ["bytes", format_bytes(2 * report.parameters), format_bytes(report.file_bytes)],
    ]
    render.table(["", "original", "quantized"], rows)
    bits = f"{report.linear_bits:.3g} bits per linear weight, {report.file_bits:.3g} of the whole file"
    verdict = "gate passed" if report.gate.passed else "gate FAILED, written by --force"
    render.result(f"\n{bits}; {verdict}; {format_seconds(report.seconds)}\n{report.folder}")
    if report.recovered is not None:
        render.result(str(report.recovered))
    render.message(f"next: lowmem chat {report.recovered or report.folder}")
