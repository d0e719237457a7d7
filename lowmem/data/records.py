"""Rows of one local file, addressable by index, each with the place it came from.

JSON lines and CSV are indexed once (where each record lies, and its line) and read again from disk on access, so
a 1 GB file costs 24 bytes per row. Every record is parsed while indexing: what is malformed is known at once.
"""

from __future__ import annotations

import csv
import io
import json
import os
import weakref
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from lowmem.errors import DataError

Row = dict[str, Any]


class Records(Protocol):
    """Rows of one file or table."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row: ...

    def where(self, index: int) -> str:
        """Where row `index` comes from: "train.jsonl:3", for messages."""
        ...


class IndexedFile:
    """Records that are read from disk on access. `parse` turns the bytes of one record into its row."""

    def __init__(self, path: Path, starts: array[int], lines: array[int], parse: Callable[[bytes, str], Row]) -> None:
        self._path, self._starts, self._lines, self._parse = path, starts, lines, parse
        # Opened once: opening costs three times as much as reading a row. Closed with the last reference.
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        return len(self._lines)

    def row(self, index: int) -> Row:
        start, stop = self._starts[2 * index : 2 * index + 2]
        return self._parse(os.pread(self._descriptor, stop - start, start), self.where(index))

    def where(self, index: int) -> str:
        return f"{self._path}:{self._lines[index]}"


class ListedRows:
    """Records that are in memory, from a file that can only be read as a whole."""

    def __init__(self, path: Path, rows: Sequence[Row]) -> None:
        self._path, self._rows = path, rows

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Row:
        return self._rows[index]

    def where(self, index: int) -> str:
        return f"{self._path}, row {index + 1}" if len(self._rows) > 1 else str(self._path)


class TableRows:
    """Records of a table with columns: a parquet file, or a dataset of the hub (memory-mapped)."""

    def __init__(self, name: str, table: Any) -> None:
        self._name, self._table = name, table

    def __len__(self) -> int:
        return len(self._table)

    def row(self, index: int) -> Row:
        row: Row = self._table[index]
        return row

    def where(self, index: int) -> str:
        return f"{self._name}, row {index + 1}"


def read_jsonl(path: Path) -> Records:
    """One JSON object per line; blank lines are passed over."""
    starts, lines = array("q"), array("q")
    offset = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if raw.strip() and raw != b"\xef\xbb\xbf":
                _json_row(raw, f"{path}:{number}")
                starts.extend((offset, offset + len(raw)))
                lines.append(number)
            offset += len(raw)
    return IndexedFile(path, starts, lines, _json_row)


def read_json(path: Path) -> Records:
    """A list of objects; or JSON lines, which many files named .json are."""
    with path.open("rb") as file:
        if file.read(256).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] != b"[":
            return read_jsonl(path)
    values = _parse_json(path.read_bytes(), str(path), first_line=1)
    for index, value in enumerate(values):
        if not isinstance(value, dict):
            raise DataError(
                f"{path}: element {index + 1} is a {_kind(value)}, not an object; a .json file is a list "
                'of objects such as [{"prompt": "…", "completion": "…"}]'
            )
    return ListedRows(path, values)


def read_csv(path: Path) -> Records:
    """A header line and one record per line, comma-separated; quoted fields may span lines. Values are text."""
    starts, lines = array("q"), array("q")
    with path.open("rb") as file:
        source = _CountedLines(file, path)
        records = _csv_reader(source)
        header = _next_record(records, source, 1)
        if header is None:
            return ListedRows(path, [])
        _check_header(header, path)
        while True:
            start, line = source.offset, source.line + 1
            record = _next_record(records, source, line)
            if record is None:
                break
            if record:
                _zip_record(header, record, f"{path}:{line}")
                starts.extend((start, source.offset))
                lines.append(line)
    return IndexedFile(path, starts, lines, lambda raw, where: _csv_row(header, raw, where))


def read_parquet(path: Path) -> Records:
    """All row groups of a parquet file, read into memory as columns."""
    import datasets
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: is not a readable parquet file ({_first_line(error)}); write it again") from error
    return TableRows(str(path), datasets.Dataset(datasets.table.InMemoryTable(table)))


def read_text(path: Path) -> Records:
    """One row, `text`: the whole file. A file of nothing but white space has no rows."""
    raw = path.read_bytes()
    text = _decode(raw, f"{path}:{_bad_line(raw)}")
    return ListedRows(path, [{"text": text}] if text.strip() else [])


READERS: dict[str, Callable[[Path], Records]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".txt": read_text,
}


def _json_row(raw: bytes, where: str) -> Row:
    value = _parse_json(raw, where, first_line=None)
    if not isinstance(value, dict):
        raise DataError(
            f"{where}: is a {_kind(value)}, not an object; each line is one object such as "
            '{"prompt": "…", "completion": "…"}'
        )
    return value


def _parse_json(raw: bytes, where: str, *, first_line: int | None) -> Any:
    """`first_line` given: `raw` is a whole file, so the error's own line number belongs into the message."""
    text = _decode(raw, where if first_line is None else f"{where}:{_bad_line(raw)}")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = where if first_line is None else f"{where}:{error.lineno}"
        raise DataError(
            f"{place}: is not valid JSON: {error.msg} at column {error.colno} ({_excerpt(text)}); "
            "write one complete JSON object per line (.jsonl), or a list of objects (.json)"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: cannot be read as JSON: {_first_line(error)}; remove or split this sample"
        ) from error


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: is not UTF-8 text (byte 0x{raw[error.start]:02x}); save the file as UTF-8, uncompressed"
        ) from error


def _bad_line(raw: bytes) -> int:
    """The line of the first byte that is not UTF-8, else 1."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return raw.count(b"\n", 0, error.start) + 1
    return 1


class _CountedLines:
    """Decoded lines of a binary file, with the offset and the line number reached so far."""

    def __init__(self, file: io.BufferedReader, path: Path) -> None:
        self._file, self._path = file, path
        self.offset = self.line = 0

    def __iter__(self) -> Iterator[str]:
        for raw in self._file:
            self.offset += len(raw)
            self.line += 1
            yield _decode(raw, self.place())

    def place(self) -> str:
        return f"{self._path}:{self.line}"


def _csv_reader(lines: _CountedLines) -> Iterator[list[str]]:
    return csv.reader(lines, strict=True)


def _next_record(records: Iterator[list[str]], source: _CountedLines, line: int) -> list[str] | None:
    try:
        return next(records, None)
    except csv.Error as error:
        place = f"{source.place().rpartition(':')[0]}:{line}"
        raise DataError(
            f"{place}: is not valid CSV: {error}; quote fields that hold commas or line breaks, "
            "and use .jsonl for fields above 128 KiB"
        ) from error


def _csv_row(header: list[str], raw: bytes, where: str) -> Row:
    record = next(csv.reader(io.StringIO(_decode(raw, where), newline=""), strict=True))
    return _zip_record(header, record, where)


def _check_header(header: list[str], path: Path) -> None:
    if len(set(header)) < len(header) or not all(name.strip() for name in header):
        raise DataError(
            f"{path}:1: the header {', '.join(map(repr, header))} has an empty or repeated name; "
            "the first line must name every column once"
        )


def _zip_record(header: list[str], record: list[str], where: str) -> Row:
    if len(record) != len(header):
        raise DataError(
            f"{where}: has {len(record)} fields, the header has {len(header)} ({', '.join(header)}); "
            "quote fields that hold commas"
        )
    return dict(zip(header, record, strict=True))


def _kind(value: object) -> str:
    names = {list: "list", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _excerpt(text: str, width: int = 60) -> str:
    text = text.strip()
    return repr(text if len(text) <= width else text[:width] + "…")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
