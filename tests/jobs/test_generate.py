"""One prompt as a stream, and files of prompts that can be stopped and taken up again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lowmem.config.generation import GenerationConfig
from lowmem.errors import ConfigError, DataError
from lowmem.events import Event
from lowmem.jobs.generate import Generator, generate_file, open_generator
from tests.models.tiny import save_tiny

DRAWN = GenerationConfig(max_new_tokens=6, temperature=1.0, seed=5)


def ignore(event: Event) -> None:
    pass


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    folder = save_tiny(tmp_path_factory.mktemp("model"), chat=True)
    return open_generator(str(folder), sink=ignore, device="cpu", dtype="fp32")


def prompts(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def answers(file: Path) -> dict[Any, str]:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row["answer"] for row in rows}


def test_text_is_continued_and_messages_are_answered(generator: Generator) -> None:
    assert generator.chat
    asked = "".join(generator.stream([{"role": "user", "content": "the cat"}], DRAWN))
    spelled = "".join(generator.stream("<|user|>the cat<|end|><|assistant|>", DRAWN))
    assert asked == spelled != "".join(generator.stream("the cat", DRAWN))


def test_messages_without_a_chat_template_are_refused(tmp_path: Path) -> None:
    plain = open_generator(str(save_tiny(tmp_path)), sink=ignore)
    assert not plain.chat
    with pytest.raises(ConfigError, match="has no chat template, so it cannot read messages; give plain text"):
        plain.stream([{"role": "user", "content": "hi"}])


def test_every_prompt_of_a_file_gets_its_answer(generator: Generator, tmp_path: Path) -> None:
    rows = [{"prompt": "the cat"}, {"id": "b", "messages": [{"role": "user", "content": "one"}]}, {"prompt": "two"}]
    out = tmp_path / "new" / "answers.jsonl"
    assert generate_file(generator, prompts(tmp_path, rows), out, DRAWN, ignore, batch_size=2) == 3
    assert list(answers(out)) == [1, "b", 3]
    record = json.loads(out.read_text().splitlines()[0])
    assert record["finish_reason"] in ("stop", "length")
    assert record["tokens"] <= 6


def test_an_interrupted_file_continues_to_the_same_answers(generator: Generator, tmp_path: Path) -> None:
    file = prompts(tmp_path, [{"prompt": "the cat"}] * 5)
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    generate_file(generator, file, whole, DRAWN, ignore)
    lines = whole.read_bytes().splitlines(keepends=True)
    broken.write_bytes(lines[0] + lines[3] + lines[2][:9])  # the last one torn by a crash
    events: list[Event] = []
    assert generate_file(generator, file, broken, DRAWN, events.append, batch_size=2) == 3
    assert answers(broken) == answers(whole)
    assert "2 of 5 answers are already in" in str(events)
    assert generate_file(generator, file, broken, DRAWN, ignore) == 0


def test_equal_prompts_under_different_ids_are_different_draws(generator: Generator, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    generate_file(generator, prompts(tmp_path, [{"prompt": "the cat"}] * 4), out, DRAWN, ignore)
    assert len(set(answers(out).values())) > 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"prompts.jsonl:2: is not valid JSON"),
        ("[1]", r"prompts.jsonl:2: is a list, not an object"),
        ('{"text": "a"}', r"prompts.jsonl:2: needs either \"prompt\" with text, or \"messages\""),
        ('{"prompt": "a", "messages": []}', r"prompts.jsonl:2: needs either"),
        ('{"messages": [{"role": "user"}]}', r"prompts.jsonl:2: needs either"),
        ('{"prompt": "a", "id": 1.5}', r"prompts.jsonl:2: id must be text or a whole number, not 1.5"),
        ('{"prompt": "a", "id": 1}', r"prompts.jsonl:2: id 1 is that of .*prompts.jsonl:1 too; ids must differ"),
    ],
)
def test_a_malformed_line_is_named(generator: Generator, tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "fine"}\n' + line + "\n")
    out = tmp_path / "answers.jsonl"
    with pytest.raises(DataError, match=message):
        generate_file(generator, file, out, DRAWN, ignore)
    assert not out.exists()


def test_files_that_cannot_be_used_are_named(generator: Generator, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    with pytest.raises(DataError, match=r"nothing.jsonl: cannot be read: No such file or directory"):
        generate_file(generator, tmp_path / "nothing.jsonl", out, DRAWN, ignore)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"empty.jsonl: holds no prompts"):
        generate_file(generator, tmp_path / "empty.jsonl", out, DRAWN, ignore)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"something": "else"}\n', r"answers.jsonl:1: is no answer \(it has no id, or no text\); give another output"),
        ('{"id": 1, "answer": 3}\n', r"answers.jsonl:1: is no answer"),
        ('{"id": 1, "answer": "a"}\n{"id": 1, "ans\n{"id": 2, "answer": "b"}\n', r"answers.jsonl:2: is not valid JSON"),
        ('{"id": 1, "answer": "a"}\n{"id": 1, "answer": "b"}\n', r"answers.jsonl:2: is a second answer to 1; give"),
        ('{"id": "x", "answer": "a"}\n', r"answers.jsonl:1: answers 'x', which is not among the prompts; give"),
    ],
)
def test_a_damaged_file_of_answers_is_refused_and_left_alone(
    generator: Generator, tmp_path: Path, content: str, message: str
) -> None:
    out = tmp_path / "answers.jsonl"
    out.write_text(content)
    with pytest.raises(DataError, match=message):
        generate_file(generator, prompts(tmp_path, [{"prompt": "a"}, {"prompt": "b"}]), out, DRAWN, ignore)
    assert out.read_text() == content


@pytest.mark.slow
def test_a_job_that_was_killed_goes_on_to_the_same_file(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    file = prompts(tmp_path, [{"prompt": f"the cat {n}"} for n in range(40)])

    def start(out: Path) -> subprocess.Popen[bytes]:
        flags = ["--batch-size", "3", "--max-new-tokens", "60", "--temperature", "1", "--device", "cpu"]
        command = [sys.executable, "-m", "lowmem", "generate", str(folder), "--input", str(file), "--output", str(out)]
        return subprocess.Popen([*command, *flags], stderr=subprocess.DEVNULL)

    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    assert start(whole).wait() == 0
    killed = start(broken)
    while not broken.exists() or broken.stat().st_size < 200:
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert 0 < len(broken.read_bytes().splitlines()) < 40
    assert start(broken).wait() == 0
    assert broken.read_bytes() == whole.read_bytes()
