"""From examples to one padded batch. Padding is known by its position, so the padding token may be any token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lowmem.data.batch import IGNORE, Batch, Options
from lowmem.data.samples import EvalItem, Example, TokenRow


def collate(examples: Sequence[Example], *, pad_id: int) -> Batch:
    """One batch of `examples`, padded on the right to the longest row. All must be of one `group`."""
    groups = {example.group for example in examples}
    if len(groups) != 1:
        raise ValueError(f"a batch holds examples of one group, not of {sorted(groups) or 'none'}")
    rows = [row for example in examples for row in example.rows]
    width = max(len(row.ids) for row in rows)
    packed = rows[0].positions is not None
    return Batch(
        input_ids=_padded([row.ids for row in rows], width, pad_id),
        attention_mask=None if packed else _padded([(1,) * len(row.ids) for row in rows], width, 0),
        labels=_padded([row.labels for row in rows], width, IGNORE),
        position_ids=_padded([_positions(row) for row in rows], width, 0) if packed else None,
        options=_options(examples),
        items=_items(examples),
    )


def grouped_batches(examples: Sequence[Example], *, size: int, pad_id: int) -> list[Batch]:
    """Batches of at most `size` examples each, in order within a group; every example is in one of them."""
    groups: dict[tuple[str, int], list[Example]] = {}
    for example in examples:
        groups.setdefault(example.group, []).append(example)
    return [collate(chunk, pad_id=pad_id) for group in groups.values() for chunk in _chunks(group, size)]


def _chunks(examples: list[Example], size: int) -> Iterator[list[Example]]:
    for start in range(0, len(examples), size):
        yield examples[start : start + size]


def _items(examples: Sequence[Example]) -> tuple[EvalItem, ...]:
    items = tuple(example.evaluation for example in examples if example.evaluation is not None)
    return items if len(items) == len(examples) else ()


def _positions(row: TokenRow) -> tuple[int, ...]:
    assert row.positions is not None
    return row.positions


def _padded(rows: list[tuple[int, ...]], width: int, fill: int) -> Tensor:
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.int64)


def _options(examples: Sequence[Example]) -> Options | None:
    if not examples[0].options:
        return None
    places = [(e, option) for e, example in enumerate(examples) for option in range(len(example.rows))]
    ids = [example.option_ids for example in examples if example.option_ids is not None]
    return Options(
        example=torch.tensor([e for e, _ in places]),
        option=torch.tensor([option for _, option in places]),
        gold=torch.tensor([example.gold for example in examples]),
        count=examples[0].options,
        token_ids=torch.tensor(ids) if ids else None,
    )
