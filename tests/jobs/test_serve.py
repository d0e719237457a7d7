"""What is decided before a server starts: memory, context, address, and what a silent request gets."""

from __future__ import annotations

import re
import socket

import pytest

from lowmem.config.generation import GenerationConfig
from lowmem.errors import BudgetError, ConfigError
from lowmem.events import Event
from lowmem.jobs.serve import ServeOptions, default_settings, serve
from tests.models.tiny import save_tiny


def ignore(event: Event) -> None:
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model"), chat=True))


def test_what_does_not_fit_is_refused_with_the_bill_before_anything_is_loaded(folder: str) -> None:
    with pytest.raises(BudgetError, match=r"serving 4000 requests of 128 .* weights .* KV cache") as caught:
        serve(folder, ServeOptions(slots=4000, memory_budget="651MiB", device="cpu"), sink=ignore)
    assert caught.value.exit_code == 3


def test_a_context_beyond_the_models_is_refused(folder: str) -> None:
    with pytest.raises(ConfigError, match="--context 129: the model reads at most 128 tokens; use 128 or fewer"):
        serve(folder, ServeOptions(context=129), sink=ignore)


def test_a_port_in_use_is_named(folder: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port} cannot be listened on: .*; choose another"):
            serve(folder, ServeOptions(port=port, device="cpu"), sink=ignore)


def test_a_second_model_takes_its_part_of_the_budget_first(folder: str) -> None:
    options = ServeOptions(slots=400, memory_budget="600MiB", device="cpu", fallback=folder)
    with pytest.raises(BudgetError) as caught:
        serve(folder, options, sink=ignore)
    left = re.search(r"of ([\d.]+) MiB: weights", str(caught.value))
    assert left is not None
    assert float(left.group(1)) < 599


def test_chat_models_are_rescued_unless_their_run_says_otherwise() -> None:
    silent = default_settings(GenerationConfig(), context=4096, chat=True)
    assert (silent.on_loop, silent.max_new_tokens, silent.commit_tokens) == ("rescue", 4096, 256)
    assert default_settings(GenerationConfig(), context=4096, chat=False).on_loop == "continue"
    said = GenerationConfig(on_loop="continue", max_new_tokens=50)
    assert default_settings(said, context=4096, chat=True) == said
    assert default_settings(GenerationConfig(), context=1024, chat=True).commit_tokens == 128
    assert default_settings(GenerationConfig(), context=128, chat=True).on_loop == "continue"
