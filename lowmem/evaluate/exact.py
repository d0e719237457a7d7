"""Share of answers that a verifier accepts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lowmem.evaluate.answers import verify

Generate = Callable[[Sequence[Sequence[int]]], list[str]]
"""Answers to prompts given as token ids, in order."""


@dataclass(frozen=True)
class Question:
    """A prompt whose answer can be checked: `kind` and `references` are what `verify` takes."""

    prompt_ids: tuple[int, ...]
    kind: str
    references: tuple[str, ...]


def exact_match(questions: Sequence[Question], generate: Generate, *, batch_size: int) -> float:
    """The share of `questions` (at least one) that `generate` answers rightly."""
    right = 0
    for start in range(0, len(questions), batch_size):
        asked = questions[start : start + batch_size]
        texts = generate([question.prompt_ids for question in asked])
        right += sum(verify(q.kind, text, q.references) for q, text in zip(asked, texts, strict=True))
    return right / len(questions)
