"""A real server on a free port of this machine, in a thread, over a tiny or a scripted model."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvicorn

from lowmem.config.generation import GenerationConfig
from lowmem.generate.fallback import Fallback
from lowmem.jobs.serve import ServeOptions, create_app_for
from lowmem.jobs.target import Target
from lowmem.models.load import LoadedModel
from tests.models.tiny import tiny_model, tiny_tokenizer


@dataclass
class Running:
    url: str

    def health(self) -> dict[str, Any]:
        return dict(httpx.get(f"{self.url}/health").json())

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def until(self, fact: Callable[[], bool], seconds: float = 20) -> bool:
        """Whether `fact` comes true in time."""
        end = time.monotonic() + seconds
        while not (true := fact()) and time.monotonic() < end:
            time.sleep(0.01)
        return true


@contextmanager
def serving(
    model: Any, *, chat: bool = True, generation: GenerationConfig | None = None, **options: Any
) -> Iterator[Running]:
    """The server of `model` under the name "tiny"."""
    loaded = LoadedModel(model, tiny_tokenizer(chat=chat), "tiny", None)
    with serving_target(Target(loaded, generation or GenerationConfig(), None), None, **options) as running:
        yield running


@contextmanager
def serving_target(target: Target, fallback: Fallback | None, **options: Any) -> Iterator[Running]:
    """The server of `target` under its own name."""
    app: Any = create_app_for(target, ServeOptions(**{"slots": 4, "context": 128, **options}), fallback)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Running(f"http://127.0.0.1:{listening.getsockname()[1]}")
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    with serving(tiny_model()) as running:
        yield running
