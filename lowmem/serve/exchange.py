"""From the worker's events to one HTTP answer, whole or streamed; a caller who leaves frees the slots."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from lowmem.generate.generation import Generation
from lowmem.serve.problems import Refused, body_of, json_response, status_of
from lowmem.serve.replies import (
    ChatAnswer,
    TextAnswer,
    chat_choice,
    delta_of,
    stream_extra,
    text_choice,
    usage_of,
)
from lowmem.serve.thinking import Said, ThinkingSplitter
from lowmem.serve.worker import Begun, Ended, Event, Failed, Piece, Ticket, Worker

GONE = 499
"""The status of a request whose caller has left; nobody reads it, the metrics count it."""


async def chat_answer(request: Request, worker: Worker, ticket: Ticket, *, model: str) -> Response:
    """All answers to a chat request in one object. Raises `Refused` when one of them fails."""
    begun, ended = await _whole(request, worker, ticket)
    choices = [chat_choice(index, one, thinking=begun[index].thinking) for index, one in enumerate(ended)]
    answer = ChatAnswer(
        id=f"chatcmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=model,
        choices=choices,
        usage=usage_of(ended, _prompted(begun)),
    )
    return json_response(answer.model_dump())


async def text_answer(request: Request, worker: Worker, ticket: Ticket, *, model: str) -> Response:
    """All continuations in one object. Raises `Refused` when one of them fails."""
    begun, ended = await _whole(request, worker, ticket)
    answer = TextAnswer(
        id=f"cmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=model,
        choices=[text_choice(index, one) for index, one in enumerate(ended)],
        usage=usage_of(ended, _prompted(begun)),
    )
    return json_response(answer.model_dump())


async def chat_events(worker: Worker, ticket: Ticket, *, model: str, usage: bool) -> AsyncIterator[str]:
    """Server-sent events of a chat answer, once all prompts were accepted. Raises `Refused` when one was not."""
    begun, early = await _accepted(worker, ticket)
    splitters = [ThinkingSplitter(thinking=one.thinking) for one in begun]
    streamed = [Said() for _ in begun]

    def deltas(event: Piece | Ended) -> list[dict[str, Any]]:
        splitter, so_far = splitters[event.index], streamed[event.index]
        said = splitter.push(event.text) if isinstance(event, Piece) else splitter.finish()
        so_far.reasoning += said.reasoning
        so_far.content += said.content
        made: list[dict[str, Any]] = [{"delta": delta_of(said), "finish_reason": None}] if said else []
        if isinstance(event, Ended):
            extra = stream_extra(event.generation, so_far, thinking=begun[event.index].thinking)
            made.append({"delta": {}, "finish_reason": event.generation.reason, "lowmem": extra})
        return made

    head = _head("chatcmpl", "chat.completion.chunk", model)
    opening = [{"index": one.index, "delta": {"role": "assistant", "content": ""}} for one in begun]
    return _events(ticket, early, deltas, head, opening, _prompted(begun) if usage else None)


async def text_events(worker: Worker, ticket: Ticket, *, model: str, usage: bool) -> AsyncIterator[str]:
    """Server-sent events of continuations, once all prompts were accepted. Raises `Refused` when one was not."""
    begun, early = await _accepted(worker, ticket)
    streamed = [Said() for _ in begun]

    def deltas(event: Piece | Ended) -> list[dict[str, Any]]:
        if isinstance(event, Piece):
            streamed[event.index].content += event.text
            return [{"text": event.text, "finish_reason": None}]
        extra = stream_extra(event.generation, streamed[event.index], thinking=None)
        return [{"text": "", "finish_reason": event.generation.reason, "lowmem": extra}]

    head = _head("cmpl", "text_completion", model)
    return _events(ticket, early, deltas, head, [], _prompted(begun) if usage else None)


async def _events(
    ticket: Ticket,
    early: list[Event],
    deltas: Callable[[Piece | Ended], list[dict[str, Any]]],
    head: dict[str, Any],
    opening: list[dict[str, Any]],
    prompt_tokens: int | None,
) -> AsyncIterator[str]:
    ended: list[Generation] = []
    if opening:
        yield _line({**head, "choices": [{**one, "finish_reason": None} for one in opening]})
    while len(ended) < len(ticket.jobs):
        event = early.pop(0) if early else await ticket.events.get()
        if isinstance(event, Failed):
            status, code = status_of(event.error)
            yield _line(body_of(status, str(event.error), code=code))
            return
        assert not isinstance(event, Begun)
        for made in deltas(event):
            yield _line({**head, "choices": [{"index": event.index, **made}]})
        if isinstance(event, Ended):
            ended.append(event.generation)
    if prompt_tokens is not None:
        yield _line({**head, "choices": [], "usage": usage_of(ended, prompt_tokens).model_dump()})
    yield "data: [DONE]\n\n"


async def _accepted(worker: Worker, ticket: Ticket) -> tuple[list[Begun], list[Event]]:
    """The beginning of every job, and what else came meanwhile. Raises `Refused` for a job that failed."""
    begun: dict[int, Begun] = {}
    early: list[Event] = []
    try:
        while len(begun) < len(ticket.jobs):
            event = await ticket.events.get()
            if isinstance(event, Failed):
                raise _refusal(event)
            if isinstance(event, Begun):
                begun[event.index] = event
            else:
                early.append(event)
    except (Refused, asyncio.CancelledError):
        worker.cancel(ticket)
        raise
    return [begun[index] for index in range(len(ticket.jobs))], early


async def _whole(request: Request, worker: Worker, ticket: Ticket) -> tuple[list[Begun], list[Generation]]:
    """Every job's beginning and its finished answer; `Refused` when one fails or the caller leaves."""
    gone = asyncio.create_task(_disconnected(request))
    answers = asyncio.create_task(_finished(ticket))
    try:
        await asyncio.wait({gone, answers}, return_when=asyncio.FIRST_COMPLETED)
        if not answers.done():
            raise Refused(GONE, "the caller has left")
        return await answers
    finally:
        gone.cancel()
        answers.cancel()
        worker.cancel(ticket)


async def _finished(ticket: Ticket) -> tuple[list[Begun], list[Generation]]:
    begun: dict[int, Begun] = {}
    ended: dict[int, Generation] = {}
    while len(ended) < len(ticket.jobs):
        match await ticket.events.get():
            case Begun() as event:
                begun[event.index] = event
            case Ended(index, generation):
                ended[index] = generation
            case Failed() as event:
                raise _refusal(event)
            case Piece():
                pass
    order = range(len(ticket.jobs))
    return [begun[index] for index in order], [ended[index] for index in order]


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _refusal(event: Failed) -> Refused:
    status, code = status_of(event.error)
    return Refused(status, str(event.error), code=code)


def _prompted(begun: list[Begun]) -> int:
    return sum(one.prompt_tokens for one in begun)


def _head(prefix: str, kind: str, model: str) -> dict[str, Any]:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _line(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"
