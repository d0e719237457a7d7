"""Errors as OpenAI's clients read them, and the limit on what a request may weigh.

JSON is written in ASCII: a lone surrogate that somebody sent must not break the very message that refuses it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lowmem.errors import ConfigError, LowmemError
from lowmem.serve.worker import Busy, Closed

_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refused(Exception):
    """A request is answered with an error of this status and code."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


def body_of(status: int, message: str, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def json_response(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`content` in ASCII JSON."""
    return Response(json.dumps(content), status, dict(headers or {}), media_type="application/json")


def status_of(error: LowmemError | RuntimeError) -> tuple[int, str | None]:
    """The HTTP status and OpenAI's code for what went wrong with a job."""
    match error:
        case Busy():
            return 429, "queue_full"
        case Closed():
            return 503, "shutting_down"
        case ConfigError():
            return 400, "context_length_exceeded" if "tokens" in str(error) else None
        case _:
            return 500, None


def add_problems(app: FastAPI) -> None:
    """Whatever goes wrong in `app` is answered in OpenAI's shape."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
        return json_response(
            body_of(error.status, str(error), code=error.code, param=error.param), error.status, headers
        )

    @app.exception_handler(LowmemError)
    async def failed(request: Request, error: LowmemError) -> Response:
        status, code = status_of(error)
        wait = error.retry_after if isinstance(error, Busy) else 5
        headers = {"Retry-After": str(wait)} if status in (429, 503) else {}
        return json_response(body_of(status, str(error), code=code), status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        message = f"{where}: {first['msg']}" if where else str(first["msg"])
        if first["type"] == "extra_forbidden":
            message = f"{where} is not supported by this server; leave it out"
        return json_response(body_of(400, message, param=where or None), 400)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        return json_response(body_of(error.status_code, str(error.detail)), error.status_code, error.headers)


class BodyLimit:
    """Bodies beyond `limit` bytes are refused with 413 before they are kept or parsed."""

    def __init__(self, app: ASGIApp, *, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self._app(scope, receive, send)
            return
        kept: list[Message] = []
        size, more = 0, True
        while more:
            message = await receive()
            kept.append(message)
            size += len(message.get("body", b""))
            more = bool(message.get("more_body", False))
            if size > self._limit:
                text = f"the request is larger than {self._limit} bytes; send less, or start with a larger limit"
                # The rest is not read: the connection ends with the answer.
                answer = json_response(body_of(413, text, code="too_large"), 413, {"Connection": "close"})
                await answer(scope, receive, send)
                return

        async def replay() -> Message:
            return kept.pop(0) if kept else await receive()

        await self._app(scope, replay, send)
