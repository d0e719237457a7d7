"""The HTTP surface: OpenAI's paths, health, metrics and a page to chat on.

GET  /                       the page
POST /v1/chat/completions    answers to messages          POST /v1/completions   continuations of text or tokens
GET  /v1/models              the one model                GET  /health, /metrics
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from fastapi import Depends, FastAPI, Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lowmem.config.generation import GenerationConfig
from lowmem.serve.exchange import chat_answer, chat_events, text_answer, text_events
from lowmem.serve.metrics import Metrics
from lowmem.serve.problems import BodyLimit, Refused, add_problems, json_response
from lowmem.serve.replies import ChatAnswer, TextAnswer
from lowmem.serve.schemas import MAX_CHOICES, ChatRequest, CompletionRequest, SamplingRequest
from lowmem.serve.worker import Job, Ticket, Worker


@dataclass
class Service:
    """A model behind HTTP. `encode_messages` is None for a model that was never shown messages."""

    worker: Worker
    metrics: Metrics
    name: str
    settings: GenerationConfig
    context: int
    encode_text: Callable[[str | Sequence[int]], Sequence[int]]
    encode_messages: Callable[[Sequence[Mapping[str, str]]], Sequence[int]] | None
    vocabulary: int
    """Token ids below this exist."""
    api_key: str | None = None
    max_body: int = 4 * 2**20
    started: int = field(default_factory=lambda: int(time.time()))
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def jobs(self, asked: SamplingRequest, prompts: Sequence[Callable[[], Sequence[int]]]) -> list[Job]:
        """One job for every answer that is wanted. Raises `Refused`."""
        if asked.model != self.name:
            raise Refused(
                404, f"the model {asked.model!r} is not served here; use {self.name!r}", code="model_not_found"
            )
        if asked.limit is not None and asked.limit > self.context:
            raise Refused(
                400,
                f"max_tokens: {asked.limit} is more than a request may hold here, {self.context}",
                param="max_tokens",
            )
        if len(prompts) * asked.choices > MAX_CHOICES:
            raise Refused(400, f"at most {MAX_CHOICES} answers (prompts times n) per request", param="n")
        settings, repetition = asked.settings(self.settings), asked.repetition()
        return [
            Job(encode, settings, self._seed(asked.seed, number), repetition)
            for encode in prompts
            for number in range(asked.choices)
        ]

    def tokens(self, prompt: str | list[int]) -> Callable[[], Sequence[int]]:
        """A prompt of a completion, to be encoded later. Raises `Refused` for tokens that do not exist."""
        if not isinstance(prompt, str) and (wrong := [token for token in prompt if token >= self.vocabulary]):
            raise Refused(400, f"token {wrong[0]} does not exist; the model has {self.vocabulary}", param="prompt")
        return lambda: self.encode_text(prompt)

    def _seed(self, asked: int | None, number: int) -> int:
        """Asked for, else another one for every answer: who asks again wants to see something else."""
        if asked is not None:
            return asked + number
        text = f"{self.settings.seed}/{self.started}/{next(self._numbers)}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big")


def create_app(service: Service) -> FastAPI:
    """The application; its lifespan starts and drains the worker."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.worker.start(asyncio.get_running_loop())
        yield
        await asyncio.to_thread(service.worker.close)

    app = FastAPI(title="lowmem", lifespan=lifespan, docs_url=None, redoc_url=None)
    add_problems(app)
    app.add_middleware(BodyLimit, limit=service.max_body)
    app.add_middleware(_Counted, metrics=service.metrics)
    _add_open(app, service)
    _add_v1(app, service)
    return app


def _add_open(app: FastAPI, service: Service) -> None:
    """What needs no key."""
    page = (files("lowmem.serve") / "page.html").read_text(encoding="utf-8")

    @app.get("/", include_in_schema=False)
    async def home() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get("/health")
    async def health() -> Response:
        alive = service.worker.alive
        state = {"status": "ok" if alive else "stopping", "model": service.name, "held": service.worker.held}
        return json_response(state, 200 if alive else 503, {} if alive else {"Retry-After": "5"})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_v1(app: FastAPI, service: Service) -> None:
    async def authorized(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if service.api_key is not None and not hmac.compare_digest(given.encode("latin-1"), service.api_key.encode()):
            raise Refused(401, "the API key is missing or wrong", code="invalid_api_key")

    guarded = [Depends(authorized)]

    @app.get("/v1/models", dependencies=guarded)
    async def models() -> Response:
        return json_response({"object": "list", "data": [_card(service)]})

    @app.get("/v1/models/{name:path}", dependencies=guarded)
    async def model(name: str) -> Response:
        if name != service.name:
            raise Refused(404, f"the model {name!r} is not served here", code="model_not_found")
        return json_response(_card(service))

    @app.post("/v1/chat/completions", dependencies=guarded, response_model=ChatAnswer)
    async def chat(asked: ChatRequest, request: Request) -> Response:
        encode = service.encode_messages
        if encode is None:
            raise Refused(400, f"{service.name} has no chat template, so it cannot read messages; use /v1/completions")
        messages = [message.plain() for message in asked.messages]
        ticket = service.worker.submit(service.jobs(asked, [lambda: encode(messages)]))
        if not asked.stream:
            return await chat_answer(request, service.worker, ticket, model=service.name)
        usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
        events = await chat_events(service.worker, ticket, model=service.name, usage=usage)
        return _Stream(events, service.worker, ticket)

    @app.post("/v1/completions", dependencies=guarded, response_model=TextAnswer)
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        prompts = [service.tokens(prompt) for prompt in asked.prompts()]
        ticket = service.worker.submit(service.jobs(asked, prompts))
        if not asked.stream:
            return await text_answer(request, service.worker, ticket, model=service.name)
        usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
        events = await text_events(service.worker, ticket, model=service.name, usage=usage)
        return _Stream(events, service.worker, ticket)


def _card(service: Service) -> dict[str, Any]:
    return {
        "id": service.name,
        "object": "model",
        "created": service.started,
        "owned_by": "lowmem",
        "max_model_len": service.context,
    }


class _Stream(StreamingResponse):
    """Server-sent events; however the response ends, even before its first event, the ticket's slots are free."""

    def __init__(self, events: AsyncIterator[str], worker: Worker, ticket: Ticket) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._worker, self._ticket = worker, ticket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._worker.cancel(self._ticket)


class _Counted:
    """Every request is counted with its path and status; unknown paths share one name."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self._metrics.requests.labels(route, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)
