"""Reading columns of a row by name and type, with errors that name file, line, what was found and what was wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lowmem.data.records import Row
from lowmem.errors import DataError


@dataclass(frozen=True)
class Fields:
    """One row on its way into a sample. `wanted` is what the format needs, for messages."""

    row: Row
    where: str
    format: str
    wanted: tuple[str, ...]

    def value(self, column: str) -> Any:
        if column not in self.row:
            raise DataError(
                f"{self.where}: format {self.format} needs the columns {', '.join(self.wanted)} and {column!r} is "
                f"missing; found: {', '.join(map(str, self.row)) or 'none'}. Rename the columns, or choose the "
                "format that fits them (auto, alpaca, messages, completion, text, task, qa)"
            )
        return self.row[column]

    def text(self, column: str) -> str:
        """The column as text; numbers are written out. Raises `DataError` for null, lists and objects."""
        value = self.value(column)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise self._wrong(column, value, "text")
        return checked_text(value, f"{self.where}: column {column!r}")

    def optional_text(self, column: str) -> str:
        """Like `text`, but empty where the column is missing or null."""
        return self.text(column) if self.row.get(column) is not None else ""

    def label(self, column: str) -> str:
        """A class label in the one spelling that tasks know: true, 1, entailment…"""
        value = self.value(column)
        if not isinstance(value, str | int) and not (isinstance(value, float) and value.is_integer()):
            raise self._wrong(column, value, "a label (a word or a whole number)")
        return str(int(value) if isinstance(value, float) else value).strip().lower()

    def list(self, column: str) -> list[Any]:
        value = self.value(column)
        if not isinstance(value, list):
            raise self._wrong(column, value, "a list")
        return value

    def inner(self, column: str) -> Fields:
        """The object in a column, as fields of its own."""
        value = self.value(column)
        if not isinstance(value, dict):
            raise self._wrong(column, value, "an object")
        return Fields(value, f"{self.where}: {column}", self.format, self.wanted)

    def _wrong(self, column: str, value: object, needed: str) -> DataError:
        return DataError(
            f"{self.where}: column {column!r} is {_shown(value)}; format {self.format} needs {needed} there"
        )


def checked_text(text: str, where: str) -> str:
    """`text` itself. Raises `DataError` when it holds half of a surrogate pair, which no tokenizer can encode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} holds half of a surrogate pair (U+{ord(text[error.start]):04X}) at character {error.start}; "
            "remove it or write the whole character"
        ) from error
    return text


def _shown(value: object) -> str:
    if value is None:
        return "null"
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
