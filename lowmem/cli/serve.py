"""`lowmem serve`: an OpenAI-compatible server, and a page to chat on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from lowmem.cli import render
from lowmem.cli.arguments import Device, FallbackTo, Target, check_device, check_dtype
from lowmem.errors import ConfigError

if TYPE_CHECKING:
    from lowmem.models.slots import KvDtype


def serve(
    target: Target,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets others in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    slots: Annotated[int, typer.Option(min=1, help="Requests decoded together: more = more memory.")] = 8,
    context: Annotated[
        int | None, typer.Option(min=2, help="Tokens of a request with its answer. [default: the model's, up to 4096]")
    ] = None,
    kv_dtype: Annotated[
        str, typer.Option(metavar="model|int8|int4", help="How keys and values are kept; int4 takes a quarter.")
    ] = "model",
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait for a slot; more are answered 429.")] = 64,
    max_body: Annotated[int, typer.Option(min=1024, help="Largest request, in bytes.")] = 4 * 2**20,
    memory_budget: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory to stay inside, as 12GiB. [default: the device]")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable with the key that /v1 asks for.")
    ] = None,
    reuse_prefixes: Annotated[
        bool, typer.Option("--reuse-prefixes", help="Read common beginnings once: faster, equal up to rounding.")
    ] = False,
    fallback: FallbackTo = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="fp32|bf16|fp16", help="Of the weights. [default: the run's, else bf16]")
    ] = None,
    device: Device = "auto",
) -> None:
    """Serve a model or a run with OpenAI's API under /v1, and a page to chat on under /. Ctrl-C or SIGTERM drains.

    Example: lowmem serve runs/demo --slots 4 --context 2048
    """
    kind = _check_kv(kv_dtype)
    from lowmem.jobs.serve import ServeOptions
    from lowmem.jobs.serve import serve as run_server

    options = ServeOptions(
        host=host,
        port=port,
        slots=slots,
        context=context,
        kv_dtype=kind,
        waiting=queue,
        max_body=max_body,
        memory_budget=memory_budget,
        device=check_device(device),
        dtype=check_dtype(dtype),
        api_key=_key(api_key_env),
        reuse_prefixes=reuse_prefixes,
        fallback=fallback,
    )
    with render.progress() as sink:
        run_server(target, options, sink=sink)


def _check_kv(text: str) -> KvDtype:
    match text:
        case "model" | "int8" | "int4":
            return text
    raise typer.BadParameter(f"{text!r} is no dtype of a cache; use model, int8 or int4", param_hint="--kv-dtype")


def _key(name: str | None) -> str | None:
    """The API key in the environment variable `name`. Raises `ConfigError` when there is none."""
    if name is None:
        return None
    if not os.environ.get(name):
        raise ConfigError(f"--api-key-env {name}: the variable is not set; export {name} with the key first")
    return os.environ[name]
