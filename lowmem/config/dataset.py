"""Where samples come from and how a row becomes text, told apart by `format`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from lowmem.config.base import Section

TaskName = Literal["sst2", "rte", "cb", "boolq", "wsc", "wic", "multirc", "copa"]


class _Source(Section):
    path: Annotated[str, Field(min_length=1)]
    """A local .jsonl/.json/.csv/.parquet/.txt file, a folder of them, or a hub dataset id."""
    subset: str | None = None
    """Configuration name of a hub dataset, e.g. "sst2" of "glue"."""
    split: str = "train"
    """Split of a hub dataset, or of a folder whose files are named by split; a single file has only "train"."""
    limit: PositiveInt | None = None
    """Use this many rows, drawn deterministically from `shuffle_seed`."""
    shuffle_seed: NonNegativeInt = 0
    weight: PositiveFloat = 1.0
    """How often each row is seen per epoch when several datasets are mixed: 2.0 = twice, 0.5 = every other."""


class AutoData(_Source):
    """The format is recognised from the columns and named in the log."""

    format: Literal["auto"] = "auto"


class AlpacaData(_Source):
    """Columns instruction, input (optional), output."""

    format: Literal["alpaca"] = "alpaca"


class MessagesData(_Source):
    """A column `messages` of {role, content}, or ShareGPT's `conversations` of {from, value}; the
    tokenizer's chat template is used and the loss falls on the assistant's turns."""

    format: Literal["messages"] = "messages"


class CompletionData(_Source):
    """Columns `prompt` and `completion`, or the two that are named here (GSM8K: question, answer)."""

    format: Literal["completion"] = "completion"
    prompt_column: str = "prompt"
    completion_column: str = "completion"
    separator: str = ""
    """Put between prompt and completion; belongs to the prompt."""


class TextData(_Source):
    """Plain text, every token trained, packed into rows of `max_length`."""

    format: Literal["text"] = "text"
    text_column: str = "text"


class TaskData(_Source):
    """A prompted classification task with verbalizers; the loss is a cross-entropy over the options."""

    format: Literal["task"] = "task"
    task: TaskName


class QaData(_Source):
    """SQuAD-style rows: context, question, answers; loss on the first answer, exact match over all."""

    format: Literal["qa"] = "qa"


class ProceduralData(Section):
    """Generated problems with a verifier; no file. The families are listed in `lowmem.data.procedural`."""

    format: Literal["procedural"] = "procedural"
    family: str
    size: PositiveInt = 1000
    data_seed: NonNegativeInt = 0
    weight: PositiveFloat = 1.0


Dataset = Annotated[
    AutoData | AlpacaData | MessagesData | CompletionData | TextData | TaskData | QaData | ProceduralData,
    Field(discriminator="format"),
]
