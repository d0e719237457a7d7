from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lowmem.config.generation import GenerationConfig
from lowmem.events import Sink


class FakeGenerator:
    def __init__(self) -> None:
        self.chat = True
        self.generation = GenerationConfig()
        self.asked: list[Any] = []

    def stream(self, prompt: Any, config: GenerationConfig) -> Iterator[str]:
        self.asked.append(prompt)
        yield "an"
        if "stop me" in str(prompt[-1]):
            raise KeyboardInterrupt
        yield f"swer {len(self.asked)}"


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> FakeGenerator:
    fake = FakeGenerator()

    def open_generator(target: str, *, sink: Sink, device: str = "auto", fallback: str | None = None) -> FakeGenerator:
        return fake

    monkeypatch.setattr("lowmem.jobs.generate.open_generator", open_generator)
    return fake


def test_the_conversation_is_remembered(run: Callable[..., Any], generator: FakeGenerator) -> None:
    result = run("chat", "runs/x", input="hello\n\nand?\n")
    assert (result.exit_code, result.stdout) == (0, "answer 1\nanswer 2\n")
    assert generator.asked[1] == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "answer 1"},
        {"role": "user", "content": "and?"},
    ]


def test_reset_forgets_it(run: Callable[..., Any], generator: FakeGenerator) -> None:
    run("chat", "runs/x", input="hello\n/reset\nand?\n")
    assert generator.asked[1] == [{"role": "user", "content": "and?"}]


def test_quit_ends_it(run: Callable[..., Any], generator: FakeGenerator) -> None:
    assert run("chat", "runs/x", input="/quit\nhello\n").exit_code == 0
    assert generator.asked == []


def test_ctrl_c_stops_the_answer_and_not_the_chat(run: Callable[..., Any], generator: FakeGenerator) -> None:
    result = run("chat", "runs/x", input="stop me\nand?\n")
    assert (result.exit_code, result.stdout) == (0, "an\nanswer 2\n")
    assert "(stopped)" in result.stderr
    assert generator.asked[1][1] == {"role": "assistant", "content": "an"}


def test_save_writes_what_can_be_trained_on(run: Callable[..., Any], generator: FakeGenerator, tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    result = run("chat", "runs/x", input=f"hé\n/save {file}\n/save\n/save {tmp_path}\n")
    (line,) = file.read_text().splitlines()
    assert [message["role"] for message in json.loads(line)["messages"]] == ["user", "assistant"]
    assert f"2 messages saved in {file}" in result.stderr
    assert "give a file: /save chat.jsonl" in result.stderr
    assert f"{tmp_path}: cannot be written: Is a directory" in result.stderr


def test_help_and_unknown_commands_say_what_there_is(run: Callable[..., Any], generator: FakeGenerator) -> None:
    result = run("chat", "runs/x", input="/help\n/hlep\n")
    assert "/save FILE" in result.stderr
    assert "/hlep is not a command; /help lists them" in result.stderr
    assert generator.asked == []


def test_a_model_without_a_template_continues_each_line_by_itself(
    run: Callable[..., Any], generator: FakeGenerator
) -> None:
    generator.chat = False
    run("chat", "runs/x", input="12+3=?\n4+5=?\n")
    assert generator.asked == ["12+3=?", "4+5=?"]
