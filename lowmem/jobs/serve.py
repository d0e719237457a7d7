"""`lowmem serve`: a model or a run behind HTTP, its memory planned before anything is loaded."""

from __future__ import annotations

import dataclasses
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from lowmem.config.generation import GenerationConfig
from lowmem.config.load import load_run
from lowmem.config.run import RunConfig
from lowmem.errors import ConfigError
from lowmem.events import Notice, Sink
from lowmem.generate.engine import STUB_ROOM
from lowmem.generate.fallback import NESTED, Fallback, engine_with, fallback_slots
from lowmem.generate.tokens import context_of, encode_prompt
from lowmem.jobs.chat_form import Message, chat_form, message_ids
from lowmem.jobs.fallback import open_fallback
from lowmem.jobs.plan import memory_here, this_device
from lowmem.jobs.target import DtypeName, Target, open_target
from lowmem.models.resolve import RunFolder, resolve
from lowmem.models.slots import KvDtype
from lowmem.plan.plan import shape_of
from lowmem.plan.serving import predict_serving, require_room
from lowmem.units import format_bytes, parse_bytes

USUAL_CONTEXT = 4096
DRAIN_SECONDS = 600
"""How long answers that were begun may take after SIGTERM."""


@dataclass(frozen=True)
class ServeOptions:
    """How a model is served. `context`: tokens of a request with its answer; None = the model's, at most 4096.

    `waiting`: requests beyond `slots` that may wait. `memory_budget`: a size; None = all memory of the device.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    slots: int = 8
    context: int | None = None
    kv_dtype: KvDtype = "model"
    waiting: int = 64
    max_body: int = 4 * 2**20
    memory_budget: str | None = None
    device: str = "auto"
    dtype: DtypeName | None = None
    api_key: str | None = None
    reuse_prefixes: bool = False
    fallback: str | None = None
    """What rescues fall back to: "nested", or a second model, which is planned and loaded beside the first."""


def serve(target: str, options: ServeOptions, *, sink: Sink) -> None:
    """Serves until SIGINT or SIGTERM, then finishes the answers that were begun.

    Raises `BudgetError` before loading when weights and caches do not fit, `ConfigError` when the address is taken.
    """
    _require_extra()
    options = _planned(target, options, sink)
    listening = _listen(options)
    with listening:
        opened = open_target(target, sink=sink, device=options.device, dtype=options.dtype)
        fallback = open_fallback(opened, options.fallback, sink=sink, device=options.device, dtype=options.dtype)
        app = create_app_for(opened, options, fallback)
        host, port = listening.getsockname()[:2]
        sink(Notice(f"serving {target} at http://{f'[{host}]' if ':' in host else host}:{port}"))
        _run(app, listening)
        sink(Notice("drained: every answer that was begun is finished"))


def create_app_for(target: Target, options: ServeOptions, fallback: Fallback | None = None) -> object:
    """The ASGI application for a loaded model; `options.context` is decided."""
    from lowmem.serve.app import Service, create_app
    from lowmem.serve.metrics import Metrics
    from lowmem.serve.worker import Worker

    model, tokenizer = target.loaded.model, target.loaded.tokenizer
    context, form = options.context or _context(context_of(model), None), chat_form(tokenizer, target.run)
    engine = engine_with(
        model,
        tokenizer,
        fallback,
        slots=options.slots,
        context=context,
        kv_dtype=options.kv_dtype,
        reuse_prefixes=options.reuse_prefixes,
    )
    metrics = Metrics()

    def messages(given: Sequence[Message]) -> list[int]:
        from jinja2 import TemplateError

        assert form is not None
        try:
            return message_ids(tokenizer, given, form)
        except TemplateError as error:
            raise ConfigError(f"messages: the model's chat template refuses them: {error}") from error

    return create_app(
        Service(
            worker=Worker(engine, slots=options.slots, context=context, waiting=options.waiting, metrics=metrics),
            metrics=metrics,
            name=target.loaded.name,
            settings=default_settings(
                target.generation, context=context, chat=form is not None or fallback is not None
            ),
            context=context,
            encode_text=lambda prompt: encode_prompt(tokenizer, prompt),
            encode_messages=None if form is None else messages,
            vocabulary=model.get_input_embeddings().num_embeddings,
            api_key=options.api_key,
            max_body=options.max_body,
        )
    )


def default_settings(given: GenerationConfig, *, context: int, chat: bool) -> GenerationConfig:
    """What a request that says nothing gets: the run's settings, as much text as fits, and rescue for chat models.

    A rescue keeps tokens of every request free for an answer; in a small context it keeps at most an eighth.
    """
    said = given.model_fields_set
    changes: dict[str, object] = {"commit_tokens": min(given.commit_tokens, max(1, context // 8))}
    if "max_new_tokens" not in said:
        changes["max_new_tokens"] = context
    if chat and "on_loop" not in said and context > 4 * STUB_ROOM:
        changes["on_loop"] = "rescue"
    return given.model_copy(update=changes)


def _planned(target: str, options: ServeOptions, sink: Sink) -> ServeOptions:
    """`options` with the context decided. Raises `BudgetError` with the bill where they do not fit the budget."""
    config = _config(target, options)
    shape, device = shape_of(config), this_device(options.device)
    context = _context(getattr(shape.get_text_config(), "max_position_embeddings", None), options.context)
    budget = parse_bytes(options.memory_budget) if options.memory_budget else memory_here(device.costs.kind)
    again = 0 if options.fallback is None else fallback_slots(options.slots)
    own = options.slots + (again if options.fallback == NESTED else 0)
    bill = predict_serving(config, shape, device, slots=own, context=context, kv_dtype=options.kv_dtype)
    if options.fallback not in (None, NESTED):
        other = _config(str(options.fallback), options)
        budget -= predict_serving(
            other, shape_of(other), device, slots=again, context=context, kv_dtype=options.kv_dtype
        ).peak
    require_room(bill, budget)
    sink(
        Notice(
            f"{own} slots of {context} tokens: {format_bytes(bill.total)} of {format_bytes(budget)}, "
            f"weights {format_bytes(bill.weights)}, KV cache {format_bytes(bill.cache)}"
        )
    )
    return dataclasses.replace(options, context=context)


def _config(target: str, options: ServeOptions) -> RunConfig:
    location = resolve(target)
    config = location.config if isinstance(location, RunFolder) else _any_run(target)
    return config if options.dtype is None else config.model_copy(update={"dtype": options.dtype})


def _any_run(model: str) -> RunConfig:
    """A run that keeps nothing beside the weights, for a model that is no run."""
    return load_run(None, ["dataset=data.jsonl", "method=zo", f"model={model}"]).config


def _context(positions: int | None, asked: int | None) -> int:
    """Tokens of a request. Raises `ConfigError` for more than the model has positions."""
    if asked is not None and positions is not None and asked > positions:
        raise ConfigError(f"--context {asked}: the model reads at most {positions} tokens; use {positions} or fewer")
    return asked or min(positions or USUAL_CONTEXT, USUAL_CONTEXT)


def _require_extra() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"serving needs {error.name}, which is not installed: pip install 'lowmem[serve]'") from error


def _listen(options: ServeOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=1024)
    except OSError as error:
        raise ConfigError(
            f"{options.host}:{options.port} cannot be listened on: {error.strerror}; choose another --host or --port"
        ) from error


def _run(app: object, listening: socket.socket) -> None:
    """Until a signal; uvicorn raises the signal again once it has drained, which must not end the process unread."""
    import uvicorn

    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, before)
