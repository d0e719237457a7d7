"""Token rows to calibrate a quantization on, and others, never read for it, to judge the result by.

Rows are drawn in an order that `seed` fixes and are never padded: second moments count every position. So a batch
holds rows of one length only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowmem.data.batch import IGNORE
from lowmem.data.dataset import EncodedDataset
from lowmem.data.permutation import Permutation
from lowmem.data.samples import Example, TokenRow
from lowmem.errors import ConfigError

HELD_OUT = 5
"""Where one dataset serves both: at most one row in this many is held out."""
OPENING = 64
"""Longest beginning of a plain text that is taken as a prompt."""


@dataclass(frozen=True)
class Text:
    """Rows of one length. `rows`, `columns`: the positions whose next token is predicted and counted."""

    input_ids: Tensor
    position_ids: Tensor | None
    rows: Tensor
    columns: Tensor

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What a model is called with."""
        positions = {} if self.position_ids is None else {"position_ids": self.position_ids}
        return {"input_ids": self.input_ids, **positions}

    @property
    def labels(self) -> Tensor:
        """The tokens that follow the counted positions."""
        return self.input_ids[self.rows, self.columns + 1]

    def to(self, device: torch.device) -> Text:
        moved = [None if t is None else t.to(device) for t in (self.position_ids,)]
        return Text(self.input_ids.to(device), moved[0], self.rows.to(device), self.columns.to(device))


@dataclass(frozen=True)
class Split:
    """Examples to calibrate on and examples to judge by; no row is in both."""

    calibration: tuple[Example, ...]
    held_out: tuple[Example, ...]


def split(
    datasets: Sequence[EncodedDataset], held_out: Sequence[EncodedDataset], *, tokens: int, judged: int, seed: int
) -> Split:
    """At least `tokens` tokens of `datasets`, in equal shares, and `judged` of `held_out`, or as many as there are.

    Without `held_out`, rows of `datasets` are held out. Raises `ConfigError` where that leaves nothing to one of them.
    """
    if held_out:
        chosen = _drawn(held_out, judged, seed)
        return Split(_drawn(datasets, tokens, seed), chosen)
    for dataset in datasets:
        if len(dataset) < 2:
            raise ConfigError(
                f"quantize: {dataset.name} has {len(dataset)} row, and the result has to be judged by text that it was "
                "not calibrated on; name other text with eval_dataset"
            )
    kept = [max(1, len(dataset) // HELD_OUT) for dataset in datasets]
    chosen = _drawn(datasets, judged, seed, most=kept)
    used = {example.where for example in chosen}
    return Split(_drawn(datasets, tokens, seed, without=used), chosen)


def texts(examples: Sequence[Example], *, size: int, most_tokens: int | None = None) -> list[Text]:
    """Every row of the examples, at most `size` of one length (and `most_tokens` tokens, but one row) together."""
    by_length: dict[tuple[int, bool], list[TokenRow]] = {}
    for example in examples:
        for row in example.rows:
            by_length.setdefault((len(row.ids), row.positions is None), []).append(row)
    found = []
    for (length, _), rows in by_length.items():
        step = size if most_tokens is None else max(1, min(size, most_tokens // length))
        found += [_text(rows[start : start + step]) for start in range(0, len(rows), step)]
    return [text for text in found if len(text.rows)]


def openings(examples: Sequence[Example], count: int) -> list[tuple[int, ...]]:
    """Prompts of up to `count` examples: what stands before the answer, or the beginning of a plain text."""
    found = []
    for example in examples:
        if example.evaluation is not None:
            found.append(tuple(example.evaluation.prompt_ids))
        else:
            row = example.rows[0]
            answer = next((t for t, label in enumerate(row.labels) if label != IGNORE), 0)
            found.append(row.ids[:answer] if answer > 1 else row.ids[: max(1, min(OPENING, len(row.ids) // 4))])
    return list(dict.fromkeys(found))[:count]


def _drawn(
    datasets: Sequence[EncodedDataset],
    tokens: int,
    seed: int,
    *,
    most: Sequence[int] | None = None,
    without: set[str] | None = None,
) -> tuple[Example, ...]:
    """Examples of each dataset until its share of `tokens` is full."""
    share = -(-tokens // len(datasets))
    chosen: list[Example] = []
    for number, dataset in enumerate(datasets):
        limit = len(dataset) if most is None else most[number]
        chosen += _until(_in_order(dataset, seed, without or set()), share, limit)
    return tuple(chosen)


def _until(examples: Iterator[Example], tokens: int, limit: int) -> Iterator[Example]:
    for example in examples:
        if tokens <= 0 or limit <= 0:
            return
        tokens, limit = tokens - example.tokens, limit - 1
        yield example


def _in_order(dataset: EncodedDataset, seed: int, without: set[str]) -> Iterator[Example]:
    order = Permutation(len(dataset), "calibration", seed)
    for position in range(len(dataset)):
        example = dataset[order[position]]
        if example.where not in without:
            yield example


def _text(rows: Sequence[TokenRow]) -> Text:
    ids = torch.tensor([row.ids for row in rows])
    positions = [row.positions for row in rows if row.positions is not None]
    # Options of a task carry no loss themselves: there, every token is counted.
    labels = torch.tensor([row.labels if row.trained else row.ids for row in rows])
    where = (labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
    return Text(ids, torch.tensor(positions) if positions else None, where[0], where[1])
