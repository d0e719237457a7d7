"""Where rows come from: a local file, a folder of them, or the hub. Nothing is tokenized here."""

from __future__ import annotations

import bisect
import difflib
import os.path
import re
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from lowmem.data.records import READERS, Records, Row, TableRows
from lowmem.errors import DataError

SPLIT_NAMES = ("train", "validation", "valid", "val", "dev", "test")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class Source:
    """Rows of all files of a dataset in one sequence. Never empty."""

    def __init__(self, name: str, parts: Sequence[Records]) -> None:
        self.name = name
        """Short: "train" of data/train.jsonl; the hub id of a hub dataset."""
        self._parts = parts
        self._ends = list(accumulate(len(part) for part in parts))
        if not self._ends or self._ends[-1] == 0:
            raise DataError(f"{name}: the dataset is empty; it needs at least one row")

    def __len__(self) -> int:
        return self._ends[-1]

    def row(self, index: int) -> Row:
        """Row `index` as a dict from column to value, read on access."""
        part, inner = self._locate(index)
        return part.row(inner)

    def where(self, index: int) -> str:
        """Place of row `index`, for messages: file and line."""
        part, inner = self._locate(index)
        return part.where(inner)

    def _locate(self, index: int) -> tuple[Records, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = bisect.bisect_right(self._ends, index)
        return self._parts[number], index - (self._ends[number - 1] if number else 0)


def open_source(path: str, *, subset: str | None = None, split: str = "train") -> Source:
    """The rows of `path`. Raises `DataError` with the file, and the line where there is one."""
    local = Path(path).expanduser()
    if not os.path.exists(local):  # unlike Path.exists, False for names that no file can have
        if looks_local(path):
            raise DataError(f"{path}: no such file or folder{_nearest(local)}")
        return Source(path, [_from_hub(path, subset, split)])
    if subset is not None:
        raise DataError(f"{path}: is local, but subset: {subset} is for hub datasets; remove subset")
    files = _folder_files(local, split) if local.is_dir() else [_single_file(local, split)]
    parts = [_read(file) for file in files]
    if not any(len(part) for part in parts):
        raise DataError(f"{path}: the dataset is empty; it needs at least one row")
    return Source(local.stem, parts)


def looks_local(path: str) -> bool:
    """True for what can only be a file: a known ending, a leading ., / or ~, or more than one slash."""
    return path.startswith((".", "/", "~")) or Path(path).suffix in READERS or not _HUB_ID.fullmatch(path)


def _single_file(path: Path, split: str) -> Path:
    if path.suffix not in READERS:
        raise DataError(f"{path}: files ending in {path.suffix!r} are not read; use one of {', '.join(READERS)}")
    if split != "train":
        raise DataError(
            f"{path}: a local file has only split: train, not {split!r}; name the file of that split instead"
        )
    return path


def _folder_files(folder: Path, split: str) -> list[Path]:
    """Files of `split` when the folder names its files by split (train.jsonl, test.jsonl), so that training
    never swallows the test set; else all readable files."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix in READERS)
    if not files:
        raise DataError(f"{folder}: the folder holds no data file; it needs one ending in {', '.join(READERS)}")
    by_split = [file for file in files if _split_of(file) is not None]
    chosen = [file for file in by_split if _split_of(file) == split]
    if not by_split and split == "train":
        return files
    if not chosen:
        found = (
            ", ".join(sorted({str(_split_of(file)) for file in by_split})) or "only train, no file is named by split"
        )
        raise DataError(f"{folder}: has no split {split!r}; found: {found}")
    return chosen


def _split_of(file: Path) -> str | None:
    """ "train" of train.jsonl and of train-00000-of-00002.parquet."""
    first = re.split(r"[-_.]", file.stem, maxsplit=1)[0]
    return first if first in SPLIT_NAMES else None


def _read(file: Path) -> Records:
    try:
        return READERS[file.suffix](file)
    except OSError as error:
        raise DataError(
            f"{file}: cannot be read: {error.strerror or error}; check the path and its permissions"
        ) from error


def _nearest(path: Path) -> str:
    """A suggestion, from the deepest folder of `path` that exists."""
    folder, wanted = path.parent, path.name
    while not os.path.isdir(folder):
        folder, wanted = folder.parent, folder.name
    names = sorted(entry.name for entry in folder.iterdir())
    close = difflib.get_close_matches(wanted, names, n=1)
    if close:
        return f"; did you mean {folder / close[0]}?"
    return f"; {folder.resolve()} holds {', '.join(names[:5]) or 'nothing'}{' …' if len(names) > 5 else ''}"


def _from_hub(path: str, subset: str | None, split: str) -> Records:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        table: Any = datasets.load_dataset(path, name=subset, split=split)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{path}: is no file or folder here, and the hub did not give it as a dataset ({reason}); check the "
            "id, subset, split and the network, or give the path of a local .jsonl file"
        ) from error
    return TableRows(path if subset is None else f"{path}/{subset}", table)
