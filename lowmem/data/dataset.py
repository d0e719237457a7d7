"""Datasets as sequences of examples: opened and checked once, tokenized on access."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Literal

from lowmem.config.dataset import AutoData, Dataset, ProceduralData, TaskData, TextData
from lowmem.data.encode import EncodeSettings, encode_sample, one_token_options
from lowmem.data.encoder import Encoder
from lowmem.data.formats import FileData, Reader, reader_of, recognise
from lowmem.data.packing import PACKABLE, row_bounds, token_row, tokenize
from lowmem.data.permutation import Permutation
from lowmem.data.procedural import generate
from lowmem.data.samples import Choice, Completion, Document, Example, Prompt, Sample
from lowmem.data.sources import Source, open_source
from lowmem.data.tasks import TASKS
from lowmem.errors import DataError
from lowmem.events import Notice, Sink

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SURVEY_ROWS = 500
"""Rows that are tokenized when a dataset is opened: enough to see what is cut and how long examples get."""
_CACHED_EXAMPLES = 256


@dataclass(frozen=True)
class Survey:
    """What a sample of the rows looks like as tokens. `lengths[n]` is the length of row `rows[n]`."""

    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    cut_prompts: int
    cut_answers: int

    def longest(self, n: int) -> list[int]:
        """The `n` longest rows of the sample, the longest first."""
        ranked = sorted(zip(self.lengths, self.rows, strict=True), key=lambda pair: (-pair[0], pair[1]))
        return [row for _, row in ranked[:n]]


class EncodedDataset:
    """Examples by index. `make` tokenizes one; the last ones used are kept."""

    def __init__(
        self, name: str, size: int, make: Callable[[int], Example], *, format: str, weight: float, seed: int
    ) -> None:
        self.name = name
        self.format = format
        self.weight = weight
        self._size, self._seed = size, seed
        self._make = lru_cache(maxsize=_CACHED_EXAMPLES)(make)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Example:
        """Example `index`, tokenized now. Raises `DataError` when nothing in it would be trained."""
        if not 0 <= index < self._size:
            raise IndexError(f"{self.name} has {self._size} examples, not an example {index}")
        return self._make(index)

    @property
    def kind(self) -> Literal["tokens", "options"]:
        """What the loss of this dataset counts."""
        return "options" if self[0].options else "tokens"

    @property
    def verifier(self) -> str | None:
        """How answers are judged, from the first example; None where nothing is generated."""
        item = self[0].evaluation
        return None if item is None else item.verifier

    @cached_property
    def survey(self) -> Survey:
        """Up to `SURVEY_ROWS` rows, tokenized once; the same rows for the same seed."""
        order = Permutation(self._size, "survey", self._seed)
        rows = tuple(order[n] for n in range(min(self._size, SURVEY_ROWS)))
        examples = [self._make(row) for row in rows]
        return Survey(
            rows,
            tuple(example.length for example in examples),
            sum(example.cut_prompt for example in examples),
            sum(example.cut_answer for example in examples),
        )


def open_dataset(
    section: Dataset,
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    train_on_prompt: bool = False,
    seed: int = 0,
    sink: Sink | None = None,
    model_type: str | None = None,
) -> EncodedDataset:
    """The dataset of `section`, every chosen row of which has been read and found well-formed.

    `model_type` of the model's config decides whether plain text may be packed. `seed` picks the rows that are
    surveyed. Raises `DataError` with file, line and a hint.
    """
    opening = _Opening(Encoder(tokenizer), max_length, train_on_prompt, seed, sink, model_type in PACKABLE)
    dataset = opening.procedural(section) if isinstance(section, ProceduralData) else opening.file(section)
    opening.report(dataset)
    return dataset


@dataclass(frozen=True)
class _Opening:
    """Everything that is the same for all formats while one dataset is opened."""

    encoder: Encoder
    max_length: int
    train_on_prompt: bool
    seed: int
    sink: Sink | None
    packed: bool

    def notice(self, message: str) -> None:
        if self.sink is not None:
            self.sink(Notice(message))

    def procedural(self, section: ProceduralData) -> EncodedDataset:
        def sample(index: int) -> tuple[Completion, str]:
            problem = generate(section.family, index, section.data_seed)
            text = Completion(Prompt(problem.prompt), problem.completion, (problem.answer,), problem.family)
            return text, f"{section.family}, problem {index} of seed {section.data_seed}"

        settings = EncodeSettings(self.max_length, self.train_on_prompt)

        def make(index: int) -> Example:
            text, where = sample(index)
            return encode_sample(text, self.encoder, settings, where)

        return self._dataset(section.family, section.size, make, section.format, section.weight)

    def file(self, section: FileData | AutoData) -> EncodedDataset:
        source = open_source(section.path, subset=section.subset, split=section.split)
        if isinstance(section, AutoData):
            section = recognise(section, source.row(0), source.where(0))
            shown = section.model_dump(exclude_defaults=True, exclude={"path", "format"})
            extra = "".join(
                f", {key}: {value!r}" for key, value in shown.items() if key.endswith(("column", "separator"))
            )
            self.notice(f"{section.path}: recognised as format: {section.format}{extra}")
        reader = reader_of(section, has_chat_template=self.encoder.has_chat_template)
        if isinstance(section, TextData):
            return self._text(section, source, reader)
        if section.format in ("alpaca", "messages") and not self.encoder.has_chat_template:
            self.notice(f"{source.name}: the tokenizer has no chat template; lowmem's plain wording is used")
        rows = self._chosen(section, len(source), source.name)
        self._check_rows(source, rows, reader)
        settings = self._settings(reader(source.row(rows[0]), source.where(rows[0])), section)
        name = section.task if isinstance(section, TaskData) else source.name
        make = partial(_encode_row, source, rows, reader, self.encoder, settings)
        return self._dataset(name, len(rows), make, section.format, section.weight)

    def report(self, dataset: EncodedDataset) -> None:
        """Tell once what `max_length` cuts."""
        survey = dataset.survey
        among = f"{len(survey.rows)} rows" if len(survey.rows) == len(dataset) else f"{len(survey.rows)} sampled rows"
        if survey.cut_answers:
            self.notice(
                f"{dataset.name}: {survey.cut_answers} of {among} have an answer longer than "
                f"max_length={self.max_length}; its end is cut off and is not learned"
            )
        if survey.cut_prompts:
            self.notice(
                f"{dataset.name}: {survey.cut_prompts} of {among} have a prompt that is cut to fit "
                f"max_length={self.max_length}"
            )

    def _text(self, section: TextData, source: Source, reader: Reader) -> EncodedDataset:
        documents = (_text_of(reader(source.row(n), source.where(n))) for n in range(len(source)))
        stream = tokenize(documents, self.encoder)
        bounds = row_bounds(stream, self.max_length, packed=self.packed)
        if not bounds:
            raise DataError(
                f"{section.path}: no row of text has two tokens or more, so there is nothing to predict; "
                "add text, or raise max_length"
            )
        if not self.packed and len(stream.starts) > 1:
            self.notice(f"{source.name}: documents are not packed: this model would see across their borders")
        rows = self._chosen(section, len(bounds), source.name)

        def make(index: int) -> Example:
            row = token_row(stream, *bounds[rows[index]], packed=self.packed)
            where = f"{section.path}, packed row {rows[index] + 1}"
            if row.trained == 0:
                raise DataError(f"{where}: nothing in this row would be trained: raise max_length={self.max_length}")
            return Example((row,), where)

        return self._dataset(source.name, len(rows), make, section.format, section.weight)

    def _chosen(self, section: FileData, size: int, name: str) -> Sequence[int]:
        """All rows, or `limit` of them drawn from `shuffle_seed`, in the order of the file."""
        if section.limit is None:
            return range(size)
        if section.limit > size:
            self.notice(f"{name}: limit {section.limit} exceeds its {size} rows; all are used")
            return range(size)
        order = Permutation(size, "limit", section.shuffle_seed)
        return sorted(order[n] for n in range(section.limit))

    def _check_rows(self, source: Source, rows: Sequence[int], reader: Reader) -> None:
        """Read every chosen row once, so that a bad one is known before training. Nothing is tokenized."""
        empty = 0
        for row in rows:
            empty += _answer_is_empty(reader(source.row(row), source.where(row)))
        if empty:
            self.notice(f"{source.name}: {empty} of {len(rows)} rows have an empty answer; they teach to say nothing")

    def _settings(self, first: Sample, section: FileData) -> EncodeSettings:
        settings = EncodeSettings(self.max_length, self.train_on_prompt)
        if not isinstance(first, Choice) or not isinstance(section, TaskData):
            return settings
        shared = TASKS[section.task].choices is not None
        option_ids = one_token_options(first, self.encoder) if shared else None
        return replace(settings, options=len(first.options), option_ids=option_ids)

    def _dataset(
        self, name: str, size: int, make: Callable[[int], Example], format: str, weight: float
    ) -> EncodedDataset:
        return EncodedDataset(name, size, make, format=format, weight=weight, seed=self.seed)


def _encode_row(
    source: Source, rows: Sequence[int], reader: Reader, encoder: Encoder, settings: EncodeSettings, index: int
) -> Example:
    where = source.where(rows[index])
    sample = reader(source.row(rows[index]), where)
    assert not isinstance(sample, Document), "text is encoded as a stream"
    return encode_sample(sample, encoder, settings, where)


def _text_of(sample: Sample) -> str:
    assert isinstance(sample, Document), "the text reader makes documents"
    return sample.text


def _answer_is_empty(sample: Sample) -> bool:
    match sample:
        case Completion(completion=completion):
            return not completion.strip()
        case Choice() | Document():
            return False
        case _:
            return not any(turn.content.strip() for turn in sample.turns if turn.role == "assistant")
