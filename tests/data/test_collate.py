from __future__ import annotations

import pytest
import torch

from lowmem.data.batch import IGNORE
from lowmem.data.collate import collate, grouped_batches
from lowmem.data.samples import Example, TokenRow


def _tokens(*ids: int) -> Example:
    return Example((TokenRow(ids, (IGNORE, *ids[1:])),), "f")


def _packed(*ids: int) -> Example:
    return Example((TokenRow(ids, ids, tuple(range(len(ids)))),), "f")


def test_padding_is_by_position_even_when_it_is_end_of_text() -> None:
    batch = collate([_tokens(5, 6, 2), _tokens(7, 2)], pad_id=2)
    assert batch.input_ids.tolist() == [[5, 6, 2], [7, 2, 2]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.labels.tolist() == [[IGNORE, 6, 2], [IGNORE, 2, IGNORE]]
    assert (batch.position_ids, batch.options) == (None, None)
    assert (batch.examples, batch.weight, batch.tokens) == (2, 3, 5)


def test_packed_rows_bring_positions_and_no_mask() -> None:
    batch = collate([_packed(5, 6), _packed(7, 8)], pad_id=0)
    assert batch.attention_mask is None
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1], [0, 1]]
    assert batch.tokens == 4


def test_rows_of_options_point_to_their_example() -> None:
    rows = tuple(TokenRow((1, n), (IGNORE, n)) for n in (7, 8, 9))
    examples = [Example(rows, "f", gold=2, options=3), Example(rows[:2], "f", gold=0, options=3)]
    batch = collate(examples, pad_id=0)
    assert batch.options is not None
    assert batch.options.example.tolist() == [0, 0, 0, 1, 1]
    assert batch.options.option.tolist() == [0, 1, 2, 0, 1]
    assert batch.options.gold.tolist() == [2, 0]
    assert (batch.options.count, batch.options.token_ids, batch.weight) == (3, None, 2)


def test_one_token_options_need_one_row_each() -> None:
    row = TokenRow((1, 4), (IGNORE, IGNORE))
    batch = collate([Example((row,), "f", gold=n, option_ids=(7, 8), options=2) for n in (1, 0)], pad_id=0)
    assert batch.options is not None
    assert batch.options.token_ids is not None
    assert batch.options.token_ids.tolist() == [[7, 8], [7, 8]]
    assert batch.options.example.tolist() == [0, 1]
    assert batch.options.option.tolist() == [0, 0]
    assert torch.equal(batch.options.gold, torch.tensor([1, 0]))


def test_examples_of_different_layouts_do_not_share_a_batch() -> None:
    with pytest.raises(ValueError, match="a batch holds examples of one group"):
        collate([_tokens(1, 2), _packed(1, 2)], pad_id=0)
    with pytest.raises(ValueError, match="not of none"):
        collate([], pad_id=0)


def test_grouping_keeps_every_example_and_the_size() -> None:
    examples = [_tokens(1, 2), _packed(3, 4), _tokens(5, 6), _packed(7, 8, 9), _tokens(1, 3)]
    batches = grouped_batches(examples, size=2, pad_id=0)
    assert [batch.input_ids.tolist() for batch in batches] == [[[1, 2], [5, 6]], [[1, 3]], [[3, 4]], [[7, 8, 9]]]
