"""What an operator watches, in the format of Prometheus (`GET /metrics`)."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lowmem.generate.engine import Engine
from lowmem.generate.generation import Generation

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
WINDOW = 1.0
"""Seconds over which tokens per second are counted."""


class Metrics:
    """One server's numbers, in a registry of their own. All methods are cheap enough for every step."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("lowmem_requests", "Requests by path and status", ["path", "status"], **own)
        self.finished = Counter("lowmem_answers", "Answers by how they ended", ["finish_reason"], **own)
        self.prompt_tokens = Counter("lowmem_prompt_tokens", "Tokens of prompts", **own)
        self.generated = Counter("lowmem_generated_tokens", "Tokens decoded, by precision", ["precision"], **own)
        self.rate = Gauge("lowmem_tokens_per_second", "Tokens decoded per second, all requests together", **own)
        self.first_token = Histogram(
            "lowmem_time_to_first_token_seconds", "From the request to its first token", buckets=SECONDS, **own
        )
        self.duration = Histogram("lowmem_request_seconds", "From the request to its end", buckets=SECONDS, **own)
        self.running = Gauge("lowmem_running_requests", "Requests in a slot", **own)
        self.waiting = Gauge("lowmem_waiting_requests", "Requests that wait for a slot", **own)
        self.kv_use = Gauge("lowmem_kv_cache_use", "Share of the KV cache's positions that are filled", **own)
        self.loops = Counter("lowmem_loop_fires", "Loops noticed, by rule", ["rule"], **own)
        self.rescues = Counter("lowmem_rescues", "Rescues, by status", ["status"], **own)
        self._since, self._count = time.monotonic(), 0

    def stepped(self, engine: Engine, tokens: dict[str, int], *, capacity: int) -> None:
        """After a step that decoded `tokens` by precision, of an engine with `capacity` positions."""
        for precision, count in tokens.items():
            self.generated.labels(precision).inc(count)
        self._count += sum(tokens.values())
        self.running.set(engine.running)
        self.waiting.set(engine.waiting)
        self.kv_use.set(engine.cached_tokens / capacity)
        passed = time.monotonic() - self._since
        if passed >= WINDOW or not engine.busy:
            self.rate.set(self._count / passed if engine.busy else 0.0)
            self._since, self._count = time.monotonic(), 0

    def ended(self, generation: Generation, seconds: float) -> None:
        """A request has its answer."""
        self.finished.labels(generation.reason).inc()
        self.duration.observe(seconds)
        if generation.loop is not None:
            self.loops.labels(generation.loop.rule).inc()
        if generation.rescue is not None:
            self.rescues.labels(generation.rescue.status).inc()

    def text(self) -> bytes:
        """The exposition that Prometheus scrapes."""
        return generate_latest(self.registry)
