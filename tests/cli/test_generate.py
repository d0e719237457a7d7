from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lowmem.config.generation import GenerationConfig
from lowmem.events import Notice, Sink


class FakeGenerator:
    """Answers with what it was asked, a character at a time."""

    def __init__(self, *, chat: bool) -> None:
        self.chat = chat
        self.generation = GenerationConfig(max_new_tokens=7)
        self.asked: list[Any] = []
        self.config: GenerationConfig | None = None

    def stream(self, prompt: Any, config: GenerationConfig) -> Iterator[str]:
        self.asked.append(prompt)
        self.config = config
        yield from "né" + str(len(self.asked))


@pytest.fixture(params=[True, False], ids=["chat", "plain"])
def generator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeGenerator:
    fake = FakeGenerator(chat=request.param)

    def open_generator(target: str, *, sink: Sink, device: str = "auto", fallback: str | None = None) -> FakeGenerator:
        sink(Notice(f"{target} on {device}"))
        return fake

    monkeypatch.setattr("lowmem.jobs.generate.open_generator", open_generator)
    return fake


def test_the_answer_is_on_stdout_and_nothing_else(run: Callable[..., Any], generator: FakeGenerator) -> None:
    result = run("generate", "runs/x", "hello", "--device", "cpu")
    assert (result.exit_code, result.stdout) == (0, "né1\n")
    assert result.stderr == "note: runs/x on cpu\n"
    assert generator.asked == [[{"role": "user", "content": "hello"}] if generator.chat else "hello"]


def test_raw_text_is_not_put_into_the_chat_template(run: Callable[..., Any], generator: FakeGenerator) -> None:
    run("generate", "m", "hello", "--raw")
    assert generator.asked == ["hello"]


def test_a_prompt_can_be_piped_in(run: Callable[..., Any], generator: FakeGenerator) -> None:
    run("generate", "m", "--raw", input="from a pipe\n")
    assert generator.asked == ["from a pipe\n"]


def test_the_runs_own_settings_hold_where_no_option_is_given(run: Callable[..., Any], generator: FakeGenerator) -> None:
    run("generate", "m", "x", "--temperature", "0.5", "--stop", "a", "--stop", "b", "--seed", "3")
    assert generator.config == GenerationConfig(max_new_tokens=7, temperature=0.5, stop=("a", "b"), seed=3)


def test_a_file_of_prompts_goes_to_a_file_of_answers(
    run: Callable[..., Any], generator: FakeGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def generate_file(given: Any, input: Path, output: Path, config: Any, sink: Sink, *, batch_size: int) -> int:
        seen.append((given, input, output, config.max_new_tokens, batch_size))
        return 3

    monkeypatch.setattr("lowmem.jobs.generate.generate_file", generate_file)
    result = run("generate", "m", "--input", "p.jsonl", "--output", "a.jsonl", "--batch-size", "2")
    assert seen == [(generator, Path("p.jsonl"), Path("a.jsonl"), 7, 2)]
    assert (result.stdout, result.stderr.splitlines()[-1]) == ("", "3 answers added to a.jsonl")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--input", "p.jsonl"], "--input and --output go together"),
        (["x", "--input", "p.jsonl", "--output", "a.jsonl"], "give either a PROMPT or --input, not both"),
        (["x", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["x", "--top-p", "0"], "--top-p 0.0: input should be greater than 0"),
        (["x", "--device", "tpu"], "use auto, cpu or cuda"),
    ],
)
def test_bad_options_are_usage_errors(
    run: Callable[..., Any], generator: FakeGenerator, args: list[str], message: str
) -> None:
    result = run("generate", "m", *args)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert generator.asked == []


def test_without_a_prompt_on_a_terminal_it_says_what_to_give(
    run: Callable[..., Any], generator: FakeGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowmem.cli.generate._stdin_is_terminal", lambda: True)
    result = run("generate", "m")
    assert result.exit_code == 2
    assert "give a PROMPT" in result.stderr
