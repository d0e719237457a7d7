"""One thread owns the engine; callers on the event loop hand it jobs and receive events.

    ticket = worker.submit(jobs)                 # raises Busy when the queue is full, Closed while it drains
    event = await ticket.events.get()            # Begun, Piece …, Ended (or Failed), each with the number of its job
    worker.cancel(ticket)                        # whatever of it still waits or runs leaves its slot

Prompts are tokenized on the same thread: fast tokenizers refuse to be used by two at once. What a step produced for all
callers crosses to the event loop in one call.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lowmem.config.generation import GenerationConfig
from lowmem.errors import LowmemError
from lowmem.generate.engine import Engine
from lowmem.generate.generation import Generation, Repetition, Request
from lowmem.serve.metrics import Metrics


class Busy(LowmemError):
    """The queue is full; `retry_after` seconds are a fair guess."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Closed(LowmemError):
    """The server is about to end and takes nothing more."""


@dataclass(frozen=True)
class Job:
    """`encode` gives the prompt's tokens, on the worker's thread; it may raise `ConfigError`."""

    encode: Callable[[], Sequence[int]]
    config: GenerationConfig
    seed: int
    repetition: Repetition | None = None


@dataclass(frozen=True)
class Begun:
    """The prompt was accepted. `thinking`: it has begun a thought that the answer goes on with."""

    index: int
    prompt_tokens: int
    thinking: bool


@dataclass(frozen=True)
class Piece:
    index: int
    text: str


@dataclass(frozen=True)
class Ended:
    """The answer is complete; `generation` does not change any more."""

    index: int
    generation: Generation


@dataclass(frozen=True)
class Failed:
    index: int
    error: LowmemError | RuntimeError


Event = Begun | Piece | Ended | Failed


@dataclass(eq=False)
class Ticket:
    """The jobs of one caller, and what became of them so far."""

    jobs: Sequence[Job]
    submitted: float = field(default_factory=time.monotonic)
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)


@dataclass(eq=False)
class _Live:
    ticket: Ticket
    index: int
    generation: Generation
    counted: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Cancel:
    ticket: Ticket


class Worker:
    """At most `waiting` jobs beyond the engine's `slots` are taken; `context` tokens fit each of them."""

    def __init__(self, engine: Engine, *, slots: int, context: int, waiting: int, metrics: Metrics) -> None:
        self._engine, self._metrics = engine, metrics
        self._slots, self._room, self._capacity = slots, slots + waiting, slots * context
        self._inbox: queue.SimpleQueue[Ticket | _Cancel | None] = queue.SimpleQueue()
        self._outbox: list[tuple[Ticket, Event]] = []
        self._live: list[_Live] = []
        self._lock, self._held = threading.Lock(), 0
        self._mean_seconds = 1.0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="lowmem engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def alive(self) -> bool:
        """Whether jobs are worked on."""
        return self._thread.is_alive() and not self._closing

    @property
    def held(self) -> int:
        """Jobs that run or wait."""
        return self._held

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Events arrive on `loop` from now on."""
        self._loop = loop
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> Ticket:
        """All of `jobs` wait, or none and it raises `Busy` or `Closed`."""
        if not self.alive:
            raise Closed("the server is shutting down and takes no new requests; ask again in a moment")
        with self._lock:
            if self._held + len(jobs) > self._room:
                ahead = max(1, self._held - self._slots + len(jobs))
                raise Busy(
                    f"{self._held} requests run or wait and {self._room} are allowed; ask again later",
                    retry_after=max(1, min(60, round(ahead / self._slots * self._mean_seconds))),
                )
            self._held += len(jobs)
        ticket = Ticket(jobs)
        self._inbox.put(ticket)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """What is left of `ticket` ends without an event; harmless when nothing is left."""
        self._inbox.put(_Cancel(ticket))

    def close(self) -> None:
        """Nothing new is taken, what was taken is finished, and the thread has ended. Blocks."""
        self._closing = True
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._take_in():
                self._step()
                self._report()
                self._flush()
        finally:
            for live in self._live:  # only where a bug ended the loop
                self._say(live, Failed(live.index, RuntimeError("the engine has stopped")))
            self._flush()

    def _take_in(self) -> bool:
        """Jobs and cancellations that came in are done with; waits for one when idle. False: the end."""
        while True:
            try:
                message = self._inbox.get(block=not self._live and not self._closing)
            except queue.Empty:
                return bool(self._live) or not self._closing
            match message:
                case Ticket():
                    self._admit(message)
                case _Cancel():
                    self._drop([live for live in self._live if live.ticket is message.ticket])
                case None:
                    pass
            self._flush()

    def _admit(self, ticket: Ticket) -> None:
        for index, job in enumerate(ticket.jobs):
            try:
                prompt = tuple(job.encode())
                request = Request(prompt, job.config, job.seed, repetition=job.repetition)
                generation = self._engine.submit(request)
            except LowmemError as error:
                self._outbox.append((ticket, Failed(index, error)))
                self._release(1)
                continue
            self._metrics.prompt_tokens.inc(len(prompt))
            self._live.append(live := _Live(ticket, index, generation))
            self._say(live, Begun(index, len(prompt), generation.thinking))

    def _step(self) -> None:
        if not self._live:
            return
        try:
            self._engine.step()
        except (LowmemError, RuntimeError) as error:  # NaN, out of memory: these requests fail, the next ones may not
            for live in self._live:
                self._say(live, Failed(live.index, error))
            self._drop(list(self._live))

    def _report(self) -> None:
        decoded: dict[str, int] = {}
        for live in list(self._live):
            self._count(live, decoded)
            if text := live.generation.take():
                self._say(live, Piece(live.index, text))
            if live.generation.reason is not None:
                self._say(live, Ended(live.index, live.generation))
                self._live.remove(live)
                self._finish(live)
        self._metrics.stepped(self._engine, decoded, capacity=self._capacity)

    def _count(self, live: _Live, decoded: dict[str, int]) -> None:
        if not live.counted and live.generation.spent.tokens:
            self._metrics.first_token.observe(time.monotonic() - live.ticket.submitted)
        for precision, count in live.generation.spent.tokens.items():
            decoded[precision] = decoded.get(precision, 0) + count - live.counted.get(precision, 0)
            live.counted[precision] = count

    def _finish(self, live: _Live) -> None:
        seconds = time.monotonic() - live.ticket.submitted
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)
        self._metrics.ended(live.generation, seconds)
        self._release(1)

    def _drop(self, gone: list[_Live]) -> None:
        for live in gone:
            self._engine.cancel(live.generation)
            self._live.remove(live)
        self._release(len(gone))
        self._metrics.stepped(self._engine, {}, capacity=self._capacity)

    def _release(self, count: int) -> None:
        with self._lock:
            self._held -= count

    def _say(self, live: _Live, event: Event) -> None:
        self._outbox.append((live.ticket, event))

    def _flush(self) -> None:
        if not self._outbox:
            return
        assert self._loop is not None
        self._loop.call_soon_threadsafe(_hand_out, self._outbox)
        self._outbox = []


def _hand_out(events: Sequence[tuple[Ticket, Event]]) -> None:
    for ticket, event in events:
        ticket.events.put_nowait(event)
