"""Rows to calibrate on and rows to judge by: no padding, nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowmem.config.dataset import CompletionData, ProceduralData, TextData
from lowmem.data.calibration import openings, split, texts
from lowmem.data.dataset import EncodedDataset, open_dataset
from lowmem.data.samples import Example, TokenRow
from lowmem.errors import ConfigError
from tests.models.tiny import tiny_tokenizer


def opened(size: int = 40, seed: int = 0) -> EncodedDataset:
    section = ProceduralData(family="add", size=size, data_seed=seed)
    return open_dataset(section, tokenizer=tiny_tokenizer(), max_length=64)


def test_rows_are_drawn_once_for_one_purpose() -> None:
    found = split([opened()], [], tokens=300, judged=60, seed=0)
    calibrated, held = ({example.where for example in part} for part in (found.calibration, found.held_out))
    assert not calibrated & held
    assert sum(example.tokens for example in found.calibration) >= 300
    assert len(held) <= 8, "one in five at most"
    again = split([opened()], [], tokens=300, judged=60, seed=0)
    assert [e.where for e in again.calibration] == [e.where for e in found.calibration]
    other = split([opened()], [], tokens=300, judged=60, seed=1)
    assert [e.where for e in other.calibration] != [e.where for e in found.calibration]


def test_other_text_is_judged_by_where_there_is_some_and_datasets_share() -> None:
    found = split([opened(), opened(seed=1)], [opened(seed=2)], tokens=200, judged=50, seed=0)
    seeds = {int(example.where.rsplit(" ", 1)[1]) for example in found.calibration}
    assert seeds == {0, 1}
    assert all(example.where.endswith("seed 2") for example in found.held_out)


def test_one_row_cannot_serve_both() -> None:
    with pytest.raises(ConfigError, match="add has 1 row, and the result has to be judged by text"):
        split([opened(size=1)], [], tokens=10, judged=10, seed=0)


def test_batches_hold_rows_of_one_length_and_every_row() -> None:
    examples = [opened()[index] for index in range(40)]
    found = texts(examples, size=3)
    assert sum(text.input_ids.shape[0] for text in found) == 40
    assert max(text.input_ids.shape[0] for text in found) == 3
    assert sum(len(text.rows) for text in found) == sum(row.trained for e in examples for row in e.rows)
    for text in found:
        assert (text.labels == text.input_ids[text.rows, text.columns + 1]).all()
    few = texts(examples, size=9, most_tokens=100)
    assert all(text.input_ids.numel() <= 100 or text.input_ids.shape[0] == 1 for text in few)


def test_a_row_without_labels_counts_everywhere() -> None:
    row = TokenRow((5, 6, 7), (-100, -100, -100))
    (text,) = texts([Example((row,), "here")], size=1)
    assert text.columns.tolist() == [0, 1]


def test_prompts_are_what_stands_before_the_answer(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    (tmp_path / "a.jsonl").write_text('{"prompt": "one two", "completion": "three"}\n')
    section = CompletionData(path=str(tmp_path / "a.jsonl"))
    (ids,) = openings([open_dataset(section, tokenizer=tokenizer, max_length=32)[0]], 3)
    assert tokenizer.decode(list(ids)).strip() == "one two"
    (tmp_path / "a.txt").write_text("the cat sat on the mat and the dog ran after it\n" * 2)
    plain = open_dataset(TextData(path=str(tmp_path / "a.txt")), tokenizer=tokenizer, max_length=32)[0]
    (opening,) = openings([plain, plain], 3)
    assert opening == plain.rows[0].ids[: len(opening)]
    assert 1 <= len(opening) <= len(plain.rows[0].ids) // 4
