"""Requests with anything in them: settings that arithmetic survives, or a refusal that names the field."""

from __future__ import annotations

import json
import math
from typing import Any

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowmem.config.generation import GenerationConfig
from lowmem.serve.schemas import ChatMessage, ChatRequest, CompletionRequest
from tests.serve.conftest import Running

BASE = GenerationConfig(max_new_tokens=100, on_loop="rescue", stop=("x",), top_k=7)
TEXT = st.text(st.characters(codec=None), max_size=6)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=5,
)
NAMES = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields} - {"model", "messages", "prompt"})


def chat(**given: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "a"}], **given})


def test_a_request_that_says_nothing_keeps_the_servers_settings() -> None:
    assert chat().settings(BASE) == BASE
    assert chat(temperature=None, stop=None).settings(BASE) == BASE


def test_what_is_said_wins() -> None:
    made = chat(max_tokens=5, max_completion_tokens=6, stop="end", top_k=-1, temperature=1e-300, min_p=0.1).settings(
        BASE
    )
    assert (made.max_new_tokens, made.stop, made.top_k, made.temperature, made.min_p) == (6, ("end",), 0, 0.0, 0.1)
    assert chat(repetition_detection={"max_pattern_size": 0}).settings(BASE).on_loop == "continue"
    detection = {"max_pattern_size": 8, "min_count": 3}
    assert chat(repetition_detection=detection).settings(BASE).on_loop == "stop"
    assert chat(repetition_detection=detection, on_loop="rescue").settings(BASE).on_loop == "rescue"


def test_parts_are_joined_and_developers_are_the_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    message = ChatMessage.model_validate({"role": "developer", "content": parts})
    assert message.plain() == {"role": "system", "content": "ab"}


def near(name: str) -> st.SearchStrategy[Any]:
    """Values that are often allowed: the edges of ranges, and tiny and huge numbers."""
    numbers = st.sampled_from([0, 1, 2, -1, 0.5, 1e-300, 1e300, -2.0, 2**62, 2**70, math.inf, math.nan])
    return numbers | JUNK | st.sampled_from(["continue", "stop", "rescue", ["a"], "a"])


@given(
    st.lists(st.sampled_from(NAMES), max_size=4, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: near(name) for name in names if name not in ("stream", "n")})
    ),
    st.sampled_from(["a", "", [5], [[5], [6]], ["a", "b"]]) | JUNK,
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_request_breaks_the_server(server: Running, fields: dict[str, Any], prompt: Any) -> None:
    body = json.dumps({"max_tokens": 3, **fields, "model": "tiny", "prompt": prompt})
    reply = httpx.post(
        f"{server.url}/v1/completions", content=body, headers={"Content-Type": "application/json"}, timeout=30
    )
    assert reply.status_code in (200, 400), reply.text
    messages = json.dumps(
        {"max_tokens": 3, **fields, "model": "tiny", "messages": [{"role": "user", "content": prompt}]}
    )
    reply = httpx.post(
        f"{server.url}/v1/chat/completions", content=messages, headers={"Content-Type": "application/json"}, timeout=30
    )
    assert reply.status_code in (200, 400), reply.text
