from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lowmem.events import Sink
from lowmem.jobs.serve import ServeOptions


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ServeOptions]]:
    seen: list[tuple[str, ServeOptions]] = []

    def serve(target: str, options: ServeOptions, *, sink: Sink) -> None:
        seen.append((target, options))

    monkeypatch.setattr("lowmem.jobs.serve.serve", serve)
    return seen


def test_options_reach_the_server(
    run: Callable[..., Any], asked: list[tuple[str, ServeOptions]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    flags = "--port 0 --slots 3 --context 99 --kv-dtype int4 --queue 5 --api-key-env MY_KEY --memory-budget 2GiB"
    assert run("serve", "runs/x", *flags.split()).exit_code == 0
    ((target, options),) = asked
    assert target == "runs/x"
    assert (options.host, options.port, options.slots, options.context) == ("127.0.0.1", 0, 3, 99)
    assert (options.kv_dtype, options.waiting, options.api_key) == ("int4", 5, "secret")
    assert options.memory_budget == "2GiB"


def test_a_key_that_is_not_set_and_an_unknown_cache_are_refused(
    run: Callable[..., Any], asked: list[tuple[str, ServeOptions]]
) -> None:
    missing = run("serve", "x", "--api-key-env", "NOT_SET_HERE")
    assert missing.exit_code == 2
    assert "--api-key-env NOT_SET_HERE: the variable is not set" in missing.stderr
    wrong = run("serve", "x", "--kv-dtype", "int2")
    assert wrong.exit_code == 2
    assert "is no dtype of a cache" in wrong.stderr
    assert not asked


@pytest.mark.parametrize("verb", [("chat",), ("generate",)])
def test_a_fallback_turns_rescue_on(run: Callable[..., Any], verb: tuple[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from lowmem.config.generation import GenerationConfig

    opened: dict[str, Any] = {}

    class Fake:
        generation, chat = GenerationConfig(), True

        def stream(self, prompt: Any, config: GenerationConfig) -> list[str]:
            return [config.on_loop]

    def open_generator(target: str, **keys: Any) -> Fake:
        opened.update(keys)
        return Fake()

    monkeypatch.setattr("lowmem.jobs.generate.open_generator", open_generator)
    given = ["x"] if verb == ("chat",) else ["x", "hello"]
    assert "rescue" in run(*verb, *given, "--fallback", "nested", input="hello\n").stdout
    assert opened["fallback"] == "nested"
    refused = run(*verb, *given, "--fallback", "nested", "--on-loop", "stop", input="hello\n")
    assert refused.exit_code == 2
    assert "it is what a rescue decodes with, and --on-loop stop has none" in refused.stderr


def test_the_server_is_told_the_fallback(run: Callable[..., Any], asked: list[tuple[str, ServeOptions]]) -> None:
    assert run("serve", "x", "--fallback", "runs/better").exit_code == 0
    assert asked[0][1].fallback == "runs/better"


@pytest.mark.parametrize("verb", [("chat",), ("generate",)])
def test_loop_flags_are_checked(run: Callable[..., Any], verb: tuple[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from lowmem.config.generation import GenerationConfig

    class Fake:
        generation, chat = GenerationConfig(), True

        def stream(self, prompt: Any, config: GenerationConfig) -> list[str]:
            return [f"{config.on_loop} {config.thinking_token_budget}"]

    monkeypatch.setattr("lowmem.jobs.generate.open_generator", lambda *args, **keys: Fake())
    given = ["x"] if verb == ("chat",) else ["x", "hello"]
    said = run(*verb, *given, "--on-loop", "rescue", "--thinking-budget", "9", input="hello\n")
    assert said.stdout == "rescue 9\n"
    wrong = run(*verb, *given, "--on-loop", "hope", input="hello\n")
    assert wrong.exit_code == 2
    assert "--on-loop hope" in wrong.stderr
