from __future__ import annotations

from typing import Any

import pytest

from lowmem.config.dataset import (
    AlpacaData,
    AutoData,
    CompletionData,
    MessagesData,
    QaData,
    TaskData,
    TextData,
)
from lowmem.data.formats import FileData, reader_of, recognise
from lowmem.data.samples import Chat, Choice, Completion, Document, Sample, Turn
from lowmem.errors import DataError


def _read(section: FileData, row: dict[str, Any], *, chat: bool = False) -> Sample:
    return reader_of(section, has_chat_template=chat)(row, "f:1")


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        (["messages"], "messages"),
        (["id", "conversations"], "messages"),
        (["instruction", "input", "output", "text"], "alpaca"),
        (["prompt", "completion"], "completion"),
        (["id", "title", "context", "question", "answers"], "qa"),
        (["text"], "text"),
        (["text", "source"], "text"),
    ],
)
def test_formats_are_recognised_from_their_columns(columns: list[str], kind: str) -> None:
    found = recognise(AutoData(path="f", limit=3, weight=2.0), columns, "f:1")
    assert (found.format, found.path, found.limit, found.weight) == (kind, "f", 3, 2.0)


def test_gsm8k_is_recognised_as_completion_of_its_columns() -> None:
    found = recognise(AutoData(path="f"), ["question", "answer"], "f:1")
    assert isinstance(found, CompletionData)
    assert (found.prompt_column, found.completion_column, found.separator) == ("question", "answer", "\n")


def test_classification_columns_ask_for_the_task() -> None:
    with pytest.raises(DataError, match="say which: format: task, task: rte or cb"):
        recognise(AutoData(path="f"), ["premise", "hypothesis", "label"], "f:1")


def test_alpaca_is_a_chat_where_there_is_a_template_and_an_instruction_text_elsewhere() -> None:
    row = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
    section = AlpacaData(path="f")
    assert _read(section, row, chat=True) == Chat((Turn("user", "Add.\n\n1 and 2"), Turn("assistant", "3")))
    plain = _read(section, row)
    assert isinstance(plain, Completion)
    assert plain.completion == "3"
    assert plain.prompt.text == (
        "Carry out the task below.\n\n### Task:\nAdd.\n\n### Material:\n1 and 2\n\n### Answer:\n"
    )
    without = _read(section, {"instruction": "Add.", "input": None, "output": "3"})
    assert isinstance(without, Completion)
    assert "Material" not in without.prompt.text


def test_completion_joins_separator_to_the_prompt() -> None:
    sample = _read(CompletionData(path="f", separator=" => "), {"prompt": "2+2", "completion": 4})
    assert sample == Completion(sample.prompt, "4", ("4",), None)  # type: ignore[union-attr]
    assert sample.prompt.text == "2+2 => "  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("answer", "verifier", "reference"),
    [
        ("It is 9 * 2.\n#### 18", "gsm8k", "18"),
        ("#### $1,200.50 ", "gsm8k", "$1,200.50"),
        ("#### -3", "gsm8k", "-3"),
        ("#### many", None, "#### many"),
        ("18", None, "18"),
    ],
)
def test_gsm8k_answers_bring_their_verifier(answer: str, verifier: str | None, reference: str) -> None:
    sample = _read(CompletionData(path="f"), {"prompt": "Q", "completion": answer})
    assert isinstance(sample, Completion)
    assert (sample.verifier, sample.references) == (verifier, (reference,))


def test_sharegpt_and_messages_read_alike() -> None:
    messages = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}
    messages["messages"].append({"role": "assistant", "content": "a"})
    share = {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "u"}]}
    share["conversations"].append({"from": "gpt", "value": "a"})
    section = MessagesData(path="f")
    expected = Chat((Turn("system", "s"), Turn("user", "u"), Turn("assistant", "a")))
    assert _read(section, messages) == _read(section, share) == expected


@pytest.mark.parametrize(
    ("answers", "references"),
    [
        ({"text": ["Paris", "in Paris", "Paris"], "answer_start": [1, 2, 3]}, ("Paris", "in Paris")),
        ([{"text": "Paris"}], ("Paris",)),
        (["Paris", " Rome "], ("Paris", "Rome")),
        ("Paris", ("Paris",)),
        ({"text": [], "answer_start": []}, ("unanswerable",)),
    ],
)
def test_qa_trains_the_first_answer_and_accepts_all(answers: Any, references: tuple[str, ...]) -> None:
    row = {"context": "France …", "question": "Capital? ", "answers": answers, "title": "Cities"}
    sample = _read(QaData(path="f"), row)
    assert isinstance(sample, Completion)
    assert sample.completion == f" {references[0]}"
    assert (sample.references, sample.verifier) == (references, "qa")
    assert sample.prompt.text == "Title: Cities\nContext: France …\nQuestion: Capital?\nAnswer:"
    assert sample.prompt.passage == "France …"


def test_text_is_a_document() -> None:
    assert _read(TextData(path="f", text_column="body"), {"body": "x"}) == Document("x")


ENTAILMENT = {"premise": "It rained.", "hypothesis": "It was wet."}
WSC = {"text": "Ann met Bo and she smiled.", "span1_text": "Ann", "span2_text": "she"}
COPA = {"premise": "It rained.", "choice1": "I got wet.", "choice2": "The sun shone."}
TASK_ROWS: list[tuple[str, dict[str, Any], str, str]] = [
    ("sst2", {"sentence": "a gem ", "label": 1}, "a gem It was", " great"),
    ("sst2", {"sentence": "a mess", "label": "negative"}, "a mess It was", " terrible"),
    ("rte", ENTAILMENT | {"label": "not_entailment"}, 'It rained.\nDoes this mean that "It was wet." is', "No"),
    ("rte", ENTAILMENT | {"label": 0}, "is true? Yes or No?\n", "Yes"),
    ("cb", ENTAILMENT | {"label": "neutral"}, 'Suppose It rained. Can we infer that "It was wet."? Yes', "Maybe"),
    ("cb", ENTAILMENT | {"label": 1}, "Yes, No, or Maybe?\n", "No"),
    (
        "boolq",
        {"passage": "Ice floats.", "question": "does ice float", "label": True},
        "floats. Does ice float?\n",
        "Yes",
    ),
    ("boolq", {"passage": "Ice floats.", "question": "is ice hot?", "answer": False}, "Is ice hot?\n", "No"),
    ("wsc", WSC | {"label": 1}, 'does the pronoun "she" refer to Ann? Yes or No?\n', "Yes"),
    ("wsc", {"text": WSC["text"], "target": WSC, "label": False}, 'pronoun "she" refer to Ann?', "No"),
    (
        "wic",
        {"word": "bat", "sentence1": "A bat flew.", "sentence2": "His bat.", "label": "0"},
        "A bat flew.\nHis bat.\n",
        "No",
    ),
    (
        "multirc",
        {"paragraph": "P.", "question": "Q?", "answer": "A", "label": 1},
        'P.\nQuestion: Q?\nI found this answer "A". Is that correct? Yes or No?\n',
        "Yes",
    ),
    ("copa", COPA | {"question": "effect", "label": 0}, "It rained so", " I got wet."),
    ("copa", COPA | {"question": "cause", "label": 1.0}, "It rained because", " the sun shone."),
]


@pytest.mark.parametrize(("task", "row", "prompt", "right"), TASK_ROWS)
def test_tasks_ask_their_question_and_know_the_right_option(
    task: str, row: dict[str, Any], prompt: str, right: str
) -> None:
    sample = _read(TaskData.model_validate({"path": "f", "task": task}), row)
    assert isinstance(sample, Choice)
    assert prompt in sample.prompt.text
    assert sample.options[sample.gold] == right
