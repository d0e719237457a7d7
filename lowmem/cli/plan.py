"""`lowmem plan`: a config or a model in, a table of methods with their memory out."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from lowmem.cli import render
from lowmem.cli.arguments import AsJson, Overrides, load_config, split_config
from lowmem.errors import ConfigError
from lowmem.events import Notice
from lowmem.units import format_bytes

if TYPE_CHECKING:
    from lowmem.config.load import LoadedRun
    from lowmem.plan.fit import Plan

ANY_DATA = ("dataset=data.jsonl", "method=auto")
"""What `--model` plans: samples of `max_length` tokens, any method."""


def plan(
    config: Annotated[
        str | None,
        typer.Argument(metavar="[CONFIG]", help="A YAML file, the name of a preset, or the first key=value."),
    ] = None,
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(help="Plan a model without a config: any method may be chosen.")] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory to stay inside, for example 12GiB. [default: the device]")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="cpu|cuda[:SIZE]", help="Plan for this device. [default: this machine's]")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=2, help="Length of the longest sample. [default: max_length]")
    ] = None,
    explain: Annotated[
        str | None, typer.Option(metavar="ROW", help="Show the whole bill of a row, by number or by name.")
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Simulate again what was planned before.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Plan serving the model, not training it.")] = False,
    slots: Annotated[int, typer.Option(min=1, help="With --serve: requests at once.")] = 8,
    context: Annotated[int, typer.Option(min=2, help="With --serve: tokens of a request with its answer.")] = 4096,
    as_json: AsJson = False,
) -> None:
    """Show what every way of training would take, and which one runs. No GPU is needed and no weights are read.

    Examples: lowmem plan run.yaml --budget 12GiB · lowmem plan --model llama-2-7b --device cuda:24GiB ·
    lowmem plan run.yaml --explain "lora on nf4" · lowmem plan --model llama-2-7b --serve --slots 4
    """
    loaded = _load(config, overrides, model)
    if serve:
        _plan_serving(loaded, budget, device, slots=slots, context=context, as_json=as_json)
        return
    with render.progress() as sink:
        for notice in loaded.notices:
            sink(Notice(notice))
        from lowmem.jobs.plan import plan as make_plan

        result = make_plan(
            loaded.config, sink=sink, budget=budget, device=device, tokens=tokens, use_cache=not no_cache
        )
    if as_json:
        render.result_json(result)
    elif explain is not None:
        _explain(result, explain)
    else:
        _show(result)
    from lowmem.plan.plan import require_choice

    require_choice(result)


def _load(config: str | None, overrides: list[str] | None, model: str | None) -> LoadedRun:
    if model is None and config is None:
        raise typer.BadParameter("give a CONFIG, or a model with --model")
    if model is None:
        name, changes = split_config(str(config), overrides)
        return load_config(name, changes)
    name, changes = (None, []) if config is None else split_config(config, overrides)
    if name is not None:
        return load_config(name, [*changes, f"model={model}"])
    return load_config(None, [*ANY_DATA, *changes, f"model={model}"])


def _show(plan: Plan) -> None:
    from lowmem.plan.table import COLUMNS, table_rows

    size = f"{plan.parameters / 1e9:.2f} B parameters, {plan.tokens} tokens"
    render.result(f"{plan.model} ({size}) on {plan.device}, budget {format_bytes(plan.budget)}\n")
    rows = [[str(number), *row] for number, row in enumerate(table_rows(plan), 1)]
    render.table(["#", *COLUMNS], rows)
    if plan.chosen is not None:
        render.result(f"\nruns: {plan.chosen.title} in {format_bytes(plan.chosen.total)} ({plan.reason})")


def _plan_serving(
    loaded: LoadedRun, budget: str | None, device: str | None, *, slots: int, context: int, as_json: bool
) -> None:
    """A row for each way of storing the keys and values. Raises `BudgetError` when none of them fits."""
    from lowmem.jobs.plan import plan_serving
    from lowmem.plan.serving import require_room

    bills, limit = plan_serving(loaded.config, budget=budget, device=device, slots=slots, context=context)
    if as_json:
        render.result_json([asdict(bill) for bill in bills])
    else:
        render.result(f"{loaded.config.model}: {slots} requests of {context} tokens, budget {format_bytes(limit)}\n")
        rows = [
            [
                bill.kv_dtype,
                *map(format_bytes, (bill.weights, bill.cache, bill.peak, bill.total)),
                "fits" if bill.total <= limit else "no",
            ]
            for bill in bills
        ]
        render.table(["cache as", "weights", "KV cache", "tensors at most", "with the device", "verdict"], rows)
    require_room(min(bills, key=lambda bill: bill.total), limit)


def _explain(plan: Plan, text: str) -> None:
    from lowmem.plan.table import bill_lines, find_row

    row = find_row(plan.rows, text)
    if row is None:
        titles = ", ".join(dict.fromkeys(row.name for row in plan.rows))
        raise ConfigError(f"--explain {text!r}: there is no such row; give a number up to {len(plan.rows)} or {titles}")
    render.result("\n".join(bill_lines(plan, row)))
