"""What a row becomes on its way to a batch: first text (a sample), then tokens (an example)."""

from __future__ import annotations

from dataclasses import dataclass

from lowmem.data.batch import IGNORE


@dataclass(frozen=True)
class Prompt:
    """Text before the answer. When it is too long, `passage` is cut first, from its left."""

    before: str
    passage: str = ""
    after: str = ""

    @property
    def text(self) -> str:
        return self.before + self.passage + self.after


@dataclass(frozen=True)
class Completion:
    """Plain text in two parts; the loss falls on `completion` and the end-of-text token after it."""

    prompt: Prompt
    completion: str
    references: tuple[str, ...] = ()
    """Answers that count as right; empty = `completion` itself."""
    verifier: str | None = None
    """How `evaluate` compares an answer: "qa", "gsm8k", a procedural family, or not at all."""


@dataclass(frozen=True)
class Turn:
    role: str
    content: str


@dataclass(frozen=True)
class Chat:
    """A conversation; the loss falls on the assistant's turns."""

    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Choice:
    """A prompted classification: which of `options` continues `prompt`."""

    prompt: Prompt
    options: tuple[str, ...]
    gold: int


@dataclass(frozen=True)
class Document:
    """Plain text, every token trained."""

    text: str


Sample = Completion | Chat | Choice | Document


@dataclass(frozen=True)
class EvalItem:
    """What it takes to generate an answer and to judge it."""

    prompt_ids: tuple[int, ...]
    prompt: str
    references: tuple[str, ...]
    verifier: str | None


@dataclass(frozen=True)
class TokenRow:
    """One sequence. `labels[t]` is the token itself where it carries loss, else IGNORE."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    positions: tuple[int, ...] | None = None
    """Given for packed rows only: they restart at 0 at every document."""

    @property
    def trained(self) -> int:
        """Tokens that carry loss. The first of a row has nothing before it to be predicted from."""
        return sum(label != IGNORE for label in self.labels[1:])


@dataclass(frozen=True)
class Example:
    """One example as tokens: one row, or one row per option of a task whose options are longer than a token."""

    rows: tuple[TokenRow, ...]
    where: str
    gold: int | None = None
    option_ids: tuple[int, ...] | None = None
    """The one-token layout: which token each option is."""
    options: int = 0
    """K, the largest number of options of any example of the dataset; 0 = not a task."""
    evaluation: EvalItem | None = None
    cut_prompt: bool = False
    cut_answer: bool = False

    @property
    def length(self) -> int:
        """T of the longest row."""
        return max(len(row.ids) for row in self.rows)

    @property
    def tokens(self) -> int:
        """Tokens of all rows together."""
        return sum(len(row.ids) for row in self.rows)

    @property
    def group(self) -> tuple[str, int]:
        """Only examples of one group fit into one batch: packed rows carry no padding, and tasks share a K."""
        if self.options:
            return ("options" if self.option_ids is None else "one-token", self.options)
        return ("padded", 0) if self.rows[0].positions is None else ("packed", self.length)
