"""Files of prompts and of answers, one JSON object a line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowmem.data.records import read_jsonl
from lowmem.errors import DataError
from lowmem.generate.generate import Answer
from lowmem.jobs.chat_form import Message

Id = str | int


@dataclass(frozen=True)
class PromptRow:
    """One prompt: text to be continued, or messages to be answered."""

    id: Id
    prompt: str | Sequence[Message]


def read_prompts(file: Path) -> list[PromptRow]:
    """The prompts of `file`, in order. Raises `DataError` with the line that cannot be used."""
    rows: list[PromptRow] = []
    seen: dict[Id, str] = {}
    for number, (where, row) in enumerate(_rows(file), start=1):
        prompt = _prompt(where, number, row)
        if prompt.id in seen:
            raise DataError(f"{where}: id {prompt.id!r} is that of {seen[prompt.id]} too; ids must differ")
        seen[prompt.id] = where
        rows.append(prompt)
    if not rows:
        raise DataError(f'{file}: holds no prompts; write lines like {{"prompt": "..."}}')
    return rows


def answered(file: Path, prompts: Sequence[PromptRow]) -> set[Id]:
    """Ids of `prompts` that have an answer in `file`; none when there is no such file.

    A last line without its end, torn by a crash, is cut off the file: its prompt is answered again. Raises `DataError`
    for a line that is no answer to one of `prompts`, or the second one to it: the file is not what this job wrote.
    """
    if not file.exists():
        return set()
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with file.open("r+b") as handle:
            handle.truncate(whole)
    asked, ids = {prompt.id for prompt in prompts}, set[Id]()
    for where, row in _rows(file):
        found = row.get("id")
        if not isinstance(found, str | int) or not isinstance(row.get("answer"), str):
            raise DataError(f"{where}: is no answer (it has no id, or no text); give another output file")
        if found not in asked or found in ids:
            fault = "is a second answer to" if found in ids else "answers"
            suffix = "" if found in ids else ", which is not among the prompts"
            raise DataError(f"{where}: {fault} {found!r}{suffix}; give another output file")
        ids.add(found)
    return ids


def append_answers(file: Path, answers: Sequence[tuple[PromptRow, Answer]]) -> None:
    """One more line per answer is in `file` and on disk."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab", buffering=0) as handle:
        for row, answer in answers:
            record: dict[str, Any] = {
                "id": row.id,
                "answer": answer.text,
                "finish_reason": answer.finish_reason,
                "tokens": len(answer.tokens),
            }
            if answer.rescue is not None:
                record["rescue"] = {"status": answer.rescue.status, "reason": answer.rescue.reason}
            # One unbuffered write a line: a crash can tear the last line only, which `answered` mends.
            handle.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        os.fsync(handle.fileno())


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of `file` after the place it stands at."""
    try:
        records = read_jsonl(file)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}; check the path") from error
    for index in range(len(records)):
        yield records.where(index), records.row(index)


def _prompt(where: str, number: int, row: dict[str, Any]) -> PromptRow:
    chosen = row.get("id", number)
    if isinstance(chosen, bool) or not isinstance(chosen, str | int):
        raise DataError(f"{where}: id must be text or a whole number, not {chosen!r}")
    text, messages = row.get("prompt"), row.get("messages")
    if isinstance(text, str) and messages is None:
        return PromptRow(chosen, text)
    if isinstance(messages, list) and messages and text is None and all(map(_is_message, messages)):
        return PromptRow(chosen, messages)
    raise DataError(
        f'{where}: needs either "prompt" with text, or "messages" with a list of {{"role": text, "content": text}}'
    )


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(k), str) for k in ("role", "content"))
