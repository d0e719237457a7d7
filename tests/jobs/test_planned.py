"""Outlines in front of prompts, the kept choice of a policy, and calibrating."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from lowmem.config.generation import GenerationConfig
from lowmem.errors import ConfigError, DataError
from lowmem.events import Event
from lowmem.generate.generate import Answer
from lowmem.generate.outline import Calibration, Choice, High
from lowmem.jobs.calibrate import Solved, calibrate, measure, read_problems
from lowmem.jobs.generate import Generator, open_generator
from lowmem.jobs.planned import Asked, chosen_policy, keep_choice, planned, question_of
from tests.models.tiny import tiny_model, tiny_tokenizer

AUTO = GenerationConfig(outline="auto")
FOUND = Calibration(10, 1.0, 0.5, 0.9, 0.1, 0.1, 0.4, 0.0, False)


class Outliner:
    """Writes the outline "steps" and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def outlines(self, prompts: Sequence[Any], config: GenerationConfig) -> list[str]:
        self.asked += prompts
        return ["steps"] * len(prompts)


class Sums:
    """Stands for a generator: the high precision adds, the low one thinks rightly and forgets to say it; with an
    outline it says it."""

    def high_answers(self, prompts: Sequence[Asked], config: GenerationConfig) -> list[Answer]:
        return [answer(f"{_sum(prompt)}") for prompt in prompts]

    def answers(self, prompts: Sequence[Asked], config: GenerationConfig) -> list[Answer]:
        assert config.outline == "off"
        assert config.on_loop == "continue"
        return [
            answer(f"{_sum(prompt)}" if "PLAN" in str(prompt) else f"<think>the answer is {_sum(prompt)}.\nhm")
            for prompt in prompts
        ]

    def planned(self, prompts: Sequence[Asked], config: GenerationConfig) -> tuple[list[Asked], list[str]]:
        outlines = ["it is 3" if prompt == "1+2" else "add" for prompt in prompts]
        return [f"{prompt}PLAN" for prompt in prompts], outlines

    def text_of(self, token: int) -> str:
        return str(token)


def _sum(prompt: Asked) -> int:
    return sum(map(int, str(prompt).removesuffix("PLAN").split("+")))


def answer(text: str) -> Answer:
    return Answer((1, 2), text, "stop")


def save_long(folder: Path) -> Path:
    """A tiny model with room for the words that ask for an outline."""
    model = tiny_model()
    model.config.max_position_embeddings = 512
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def ignore(event: Event) -> None:
    pass


def test_a_prompt_and_the_last_message_get_the_outline() -> None:
    high = Outliner()
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    given, outlines = planned(["1+1?", messages], cast(High, high), GenerationConfig(), lambda asked: str(asked))
    assert outlines == ["steps", "steps"]
    assert [question_of(one) for one in given] == [
        "1+1?\n\nOutline:\nsteps\n\nFollow the outline.",
        "2+2?\n\nOutline:\nsteps\n\nFollow the outline.",
    ]
    assert cast(Any, given[1])[0] == messages[0]
    assert all("Write a numbered outline" in asked for asked in high.asked)
    assert messages[1]["content"] == "2+2?"


@pytest.mark.parametrize(("outline", "policy"), [("off", "rescue"), ("on", "planning")])
def test_what_was_asked_for_needs_no_calibration(outline: Any, policy: str) -> None:
    assert chosen_policy("nowhere", GenerationConfig(outline=outline)) == policy


def test_auto_follows_the_kept_choice(tmp_path: Path) -> None:
    keep_choice(tmp_path, Choice("high", "because"), FOUND)
    assert chosen_policy(str(tmp_path), AUTO) == "high"
    assert json.loads((tmp_path / "decoding.json").read_text())["calibration"]["planned"] == 0.9


def test_auto_without_a_calibration_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="was never calibrated; run `lowmem calibrate"):
        chosen_policy(str(tmp_path), AUTO)


def test_a_choice_of_no_known_policy_is_refused(tmp_path: Path) -> None:
    (tmp_path / "decoding.json").write_text('{"policy": "hope"}')
    with pytest.raises(ConfigError, match="'hope' is no policy; calibrate again"):
        chosen_policy(str(tmp_path), AUTO)


def test_a_calibration_counts_what_was_lost_where() -> None:
    asked: list[Asked] = [f"1+{n}" for n in range(2, 12)]
    given = Solved(asked, [str(_sum(one)) for one in asked])
    settings = GenerationConfig(on_loop="continue")
    found = measure(cast(Generator, Sums()), given, settings, kind="number", batch_size=4)
    assert found == Calibration(
        problems=10, high=1.0, low=0.0, planned=1.0, loops=0.0, commitment=1.0, path=0.0, leaked=0.1, options=False
    )


def problem_file(folder: Path, rows: int, **more: object) -> Path:
    file = folder / "problems.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{n}+1", "answer": n + 1, **more}) + "\n" for n in range(rows)))
    return file


def test_a_calibration_is_kept_and_followed(tmp_path: Path) -> None:
    folder = save_long(tmp_path / "model")
    choice, found = calibrate(
        str(folder),
        problem_file(tmp_path, 12),
        fallback=str(save_long(tmp_path / "other")),
        limit=10,
        changes={"max_new_tokens": 4, "seed": None},
        device="cpu",
        sink=ignore,
    )
    assert found.problems == 10
    assert chosen_policy(str(folder), AUTO) == choice.policy == "rescue"


def test_calibrating_needs_answers_and_enough_of_them(tmp_path: Path) -> None:
    assert read_problems(problem_file(tmp_path, 12), 11).references[-1] == "11"
    with pytest.raises(DataError, match="9 problems decide nothing; give 50, at least 10"):
        read_problems(problem_file(tmp_path, 9), 50)
    with pytest.raises(DataError, match='has no "answer" to compare with'):
        read_problems(problem_file(tmp_path, 12, answer=None), 50)


def test_the_generator_plans_or_answers_in_high_precision(tmp_path: Path) -> None:
    folder, other = save_long(tmp_path / "model"), save_long(tmp_path / "other")
    generator = open_generator(str(folder), sink=ignore, device="cpu", dtype="fp32", fallback=str(other))
    config = GenerationConfig(max_new_tokens=4, outline_tokens=4)
    prompts, _ = generator.planned(["a b"], config)
    on = config.model_copy(update={"outline": "on"})
    assert generator.answers(["a b"], on) == generator.answers(prompts, config)
    assert "".join(generator.stream("a b", on)) == generator.answers(["a b"], on)[0].text
    keep_choice(folder, Choice("high", "because"), FOUND)
    assert generator.answers(["a b"], config.model_copy(update={"outline": "auto"})) == generator.high_answers(
        ["a b"], config
    )
