"""Messages reach a model in the form it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lowmem.config.run import RunConfig
from lowmem.jobs.chat_form import ChatForm, chat_form, message_ids
from tests.models.tiny import tiny_tokenizer

TALK = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "ho"},
    {"role": "user", "content": "name it"},
]


def run_on(*formats: str) -> RunConfig:
    data: list[Any] = [{"format": name, "path": "a.jsonl"} for name in formats]
    return RunConfig.model_validate({"model": "m", "dataset": data})


@pytest.mark.parametrize(
    ("formats", "form"),
    [(("messages",), "plain"), (("alpaca",), "instruction"), (("alpaca", "messages"), "plain"), (("text",), None)],
)
def test_without_a_template_the_form_is_that_of_the_training_data(formats: tuple[str, ...], form: str | None) -> None:
    assert chat_form(tiny_tokenizer(), run_on(*formats)) == form


def test_a_template_comes_first_and_no_run_means_no_other_form() -> None:
    assert chat_form(tiny_tokenizer(chat=True), run_on("alpaca")) == "template"
    assert chat_form(tiny_tokenizer(), None) is None


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("template", "<|user|>hi<|end|><|assistant|>ho<|end|><|user|>name it<|end|><|assistant|>"),
        ("plain", "### User:\nhi\n\n### Assistant:\nho<eos>\n### User:\nname it\n\n### Assistant:\n"),
        ("instruction", "Carry out the task below.\n\n### Task:\nname it\n\n### Answer:\n"),
    ],
)
def test_the_prompt_asks_for_the_next_answer(form: ChatForm, text: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(chat=True)
    assert tokenizer.decode(message_ids(tokenizer, TALK, form)) == text
