"""Prompted classification tasks: the pattern, the words for the labels, and which side is cut when it is too long.

Patterns carry the meaning of those used with MeZO (Malladi et al. 2023, arXiv 2305.17333, appendix), so that results
can be compared. Fields are those of SuperGLUE and GLUE, from the hub (labels are numbers) or in their original files
(labels are words).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lowmem.config.dataset import TaskName
from lowmem.data.columns import Fields
from lowmem.data.samples import Choice, Prompt
from lowmem.errors import DataError

_YES_NO = ("Yes", "No")
_TRUTH = {"true": 0, "1": 0, "yes": 0, "false": 1, "0": 1, "no": 1}
"""Labels of yes/no tasks -> index into _YES_NO."""
_ENTAILMENT = {"entailment": 0, "0": 0, "not_entailment": 1, "1": 1}
_CB = {"entailment": 0, "0": 0, "contradiction": 1, "1": 1, "neutral": 2, "2": 2}
_SENTIMENT = {"negative": 0, "0": 0, "positive": 1, "1": 1}
_FIRST_OR_SECOND = {"0": 0, "1": 1}


@dataclass(frozen=True)
class Task:
    """How one task reads a row. `choices` is None when every row brings its own (COPA)."""

    columns: tuple[str, ...]
    labels: dict[str, int]
    prompt: Callable[[Fields], Prompt]
    choices: tuple[str, ...] | None

    def read(self, fields: Fields) -> Choice:
        """The row as a prompt with options. Raises `DataError` for missing columns and unknown labels."""
        prompt = self.prompt(fields)
        options = self.choices or tuple(" " + _inside_sentence(fields.text(f"choice{n}")) for n in (1, 2))
        return Choice(prompt, options, self._gold(fields))

    def _gold(self, fields: Fields) -> int:
        boolq_file = "label" not in fields.row and isinstance(fields.row.get("answer"), bool)
        label = fields.label("answer" if boolq_file else "label")
        if label not in self.labels:
            unlabelled = " (the row is unlabelled, as in the test splits of GLUE)" if label == "-1" else ""
            raise DataError(
                f"{fields.where}: label {label!r} is not one of {', '.join(self.labels)}{unlabelled}; "
                "use a labelled split"
            )
        return self.labels[label]


def _sst2(fields: Fields) -> Prompt:
    return Prompt("", fields.text("sentence").strip(), " It was")


def _rte(fields: Fields) -> Prompt:
    hypothesis = fields.text("hypothesis").strip()
    return Prompt("", fields.text("premise"), f'\nDoes this mean that "{hypothesis}" is true? Yes or No?\n')


def _cb(fields: Fields) -> Prompt:
    hypothesis = fields.text("hypothesis").strip()
    return Prompt("Suppose ", fields.text("premise"), f' Can we infer that "{hypothesis}"? Yes, No, or Maybe?\n')


def _boolq(fields: Fields) -> Prompt:
    question = fields.text("question").strip().rstrip("?")
    return Prompt("", fields.text("passage"), f" {question[:1].upper()}{question[1:]}?\n")


def _wsc(fields: Fields) -> Prompt:
    spans = fields.inner("target") if "target" in fields.row else fields
    noun, pronoun = spans.text("span1_text"), spans.text("span2_text")
    question = f'In the previous sentence, does the pronoun "{pronoun}" refer to {noun}? Yes or No?'
    return Prompt("", fields.text("text"), f"\n{question}\n")


def _wic(fields: Fields) -> Prompt:
    question = f'Does the word "{fields.text("word")}" have the same meaning in these two sentences? Yes, No?'
    return Prompt(f"{question}\n", f"{fields.text('sentence1')}\n{fields.text('sentence2')}", "\n")


def _multirc(fields: Fields) -> Prompt:
    claim = f'I found this answer "{fields.text("answer")}". Is that correct? Yes or No?'
    return Prompt("", fields.text("paragraph"), f"\nQuestion: {fields.text('question')}\n{claim}\n")


def _copa(fields: Fields) -> Prompt:
    link = {"effect": "so", "cause": "because"}.get(fields.text("question"))
    if link is None:
        raise DataError(f"{fields.where}: column question is {fields.text('question')!r}; it must be cause or effect")
    return Prompt("", fields.text("premise").strip().rstrip("."), f" {link}")


def _inside_sentence(choice: str) -> str:
    """A sentence as the second half of one: its first letter small, unless the word is "I"."""
    choice = choice.strip()
    word = choice.split(" ", 1)[0]
    return choice if word == "I" or word.startswith("I'") else choice[:1].lower() + choice[1:]


TASKS: dict[TaskName, Task] = {
    "sst2": Task(("sentence", "label"), _SENTIMENT, _sst2, (" terrible", " great")),
    "rte": Task(("premise", "hypothesis", "label"), _ENTAILMENT, _rte, _YES_NO),
    "cb": Task(("premise", "hypothesis", "label"), _CB, _cb, (*_YES_NO, "Maybe")),
    "boolq": Task(("passage", "question", "label"), _TRUTH, _boolq, _YES_NO),
    "wsc": Task(("text", "target", "label"), _TRUTH, _wsc, _YES_NO),
    "wic": Task(("word", "sentence1", "sentence2", "label"), _TRUTH, _wic, _YES_NO),
    "multirc": Task(("paragraph", "question", "answer", "label"), _TRUTH, _multirc, _YES_NO),
    "copa": Task(("premise", "question", "choice1", "choice2", "label"), _FIRST_OR_SECOND, _copa, None),
}
