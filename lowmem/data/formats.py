"""From a row to a sample of text: one reader per `format`, and the recognition of formats from columns.

Plain text stays plain: `completion`, `task`, `qa` and `procedural` never pass through a chat template. `alpaca` and
`messages` use the tokenizer's chat template; a tokenizer without one gets the wording of `lowmem.data.template`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import assert_never

from lowmem.config.dataset import (
    AlpacaData,
    AutoData,
    CompletionData,
    MessagesData,
    QaData,
    TaskData,
    TextData,
)
from lowmem.data.columns import Fields, checked_text
from lowmem.data.records import Row
from lowmem.data.samples import Chat, Completion, Document, Prompt, Sample, Turn
from lowmem.data.tasks import TASKS
from lowmem.data.template import instruction_message, instruction_prompt, question_prompt
from lowmem.errors import DataError

Reader = Callable[[Row, str], Sample]
"""(row, where) -> sample. Raises `DataError` with the place."""

FileData = AlpacaData | MessagesData | CompletionData | TextData | TaskData | QaData
UNANSWERABLE = "unanswerable"
"""The answer to a SQuAD 2 question that has none."""

_ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}
_SHAREGPT_ROLES |= {"tool": "tool", "observation": "tool", "function": "tool"}
_GSM8K_ANSWER = re.compile(r"####\s*([-+$]?[\d.,]*\d)\s*$")


def reader_of(section: FileData, *, has_chat_template: bool) -> Reader:
    """How rows of `section` are read."""
    match section:
        case AlpacaData():
            return lambda row, where: _alpaca(row, where, has_chat_template)
        case MessagesData():
            return _messages
        case CompletionData():
            return lambda row, where: _completion(row, where, section)
        case TextData():
            return lambda row, where: _document(row, where, section.text_column)
        case QaData():
            return _qa
        case TaskData(task=task):
            columns = TASKS[task].columns
            return lambda row, where: TASKS[task].read(Fields(row, where, f"task {task}", columns))
        case _:
            assert_never(section)


def recognise(section: AutoData, columns: Iterable[str], where: str) -> FileData:
    """The section that `format: auto` stands for, from the columns of the first row."""
    found = tuple(columns)
    have = set(found)
    common = section.model_dump(exclude={"format"})
    if have & {"messages", "conversations"}:
        return MessagesData(**common)
    if have >= {"instruction", "output"}:
        return AlpacaData(**common)
    if have >= {"prompt", "completion"}:
        return CompletionData(**common)
    if have >= {"context", "question", "answers"}:
        return QaData(**common)
    if have == {"question", "answer"}:
        return CompletionData(**common, prompt_column="question", completion_column="answer", separator="\n")
    likely = [name for name, task in TASKS.items() if have >= set(task.columns)]
    if likely:
        raise DataError(
            f"{where}: has the columns of a classification task; say which: format: task, task: {' or '.join(likely)}"
        )
    if "text" in have:
        return TextData(**common)
    raise DataError(
        f"{where}: the format cannot be recognised from the columns {', '.join(map(str, found)) or '(none)'}; set "
        "format: completion with prompt_column and completion_column, or rename to one of instruction+output, "
        "messages, prompt+completion, context+question+answers, text"
    )


def _alpaca(row: Row, where: str, has_chat_template: bool) -> Sample:
    fields = Fields(row, where, "alpaca", ("instruction", "output"))
    instruction, given = fields.text("instruction"), fields.optional_text("input")
    output = fields.text("output")
    if has_chat_template:
        return Chat((Turn("user", instruction_message(instruction, given)), Turn("assistant", output)))
    return Completion(instruction_prompt(instruction, given), output)


def _completion(row: Row, where: str, section: CompletionData) -> Completion:
    fields = Fields(row, where, "completion", (section.prompt_column, section.completion_column))
    prompt, completion = fields.text(section.prompt_column), fields.text(section.completion_column)
    solved = _GSM8K_ANSWER.search(completion)
    return Completion(
        Prompt(prompt + section.separator),
        completion,
        references=(solved[1],) if solved else (completion,),
        verifier="gsm8k" if solved else None,
    )


def _document(row: Row, where: str, column: str) -> Document:
    return Document(Fields(row, where, "text", (column,)).text(column))


def _qa(row: Row, where: str) -> Completion:
    fields = Fields(row, where, "qa", ("context", "question", "answers"))
    answers = _answers(fields) or [UNANSWERABLE]
    prompt = question_prompt(fields.text("context"), fields.text("question"), fields.optional_text("title"))
    return Completion(prompt, f" {answers[0]}", references=tuple(dict.fromkeys(answers)), verifier="qa")


def _answers(fields: Fields) -> list[str]:
    """Texts of {"text": [...]}, of [{"text": ...}, ...], of a list of texts, or of one text."""
    value = fields.value("answers")
    answers: list[object]
    match value:
        case str():
            answers = [value]
        case {"text": [*texts]}:
            answers = texts
        case [*items]:
            answers = [item["text"] if isinstance(item, dict) and "text" in item else item for item in items]
        case _:
            answers = [value]
    return [_answer(answer, f"{fields.where}: column 'answers'") for answer in answers]


def _answer(answer: object, where: str) -> str:
    if not isinstance(answer, str) or not answer.strip():
        raise DataError(
            f"{where} is not understood at {str(answer)[:60]!r}; format qa needs "
            '{"text": ["…"]} or a list of non-empty texts'
        )
    return checked_text(answer.strip(), where)


def _messages(row: Row, where: str) -> Chat:
    column = "conversations" if "messages" not in row and "conversations" in row else "messages"
    fields = Fields(row, where, "messages", ("messages (or conversations)",))
    turns = tuple(_turn(item, f"{where}: {column}[{n}]") for n, item in enumerate(fields.list(column)))
    if not any(turn.role == "assistant" for turn in turns):
        raise DataError(f"{where}: the conversation has no assistant turn, so there is nothing to train on; remove it")
    return Chat(turns)


def _turn(item: object, where: str) -> Turn:
    """{role, content}, or ShareGPT's {from, value}."""
    match item:
        case {"role": str(role), "content": str(content)}:
            known = {name: name for name in _ROLES}
        case {"from": str(role), "value": str(content)}:
            known = _SHAREGPT_ROLES
        case _:
            raise DataError(
                f"{where}: is {str(item)[:60]!r}; a turn is an object with texts role and content (or from and value)"
            )
    if role not in known:
        raise DataError(f"{where}: role {role!r} is not one of {', '.join(known)}; rename it")
    return Turn(known[role], checked_text(content, where))
