from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lowmem.config.dataset import CompletionData, ProceduralData, TaskData, TextData
from lowmem.data.dataset import EncodedDataset, open_dataset
from lowmem.data.train_batches import TrainBatches
from lowmem.errors import DataError

Write = Callable[..., str]


def _batches(datasets: list[EncodedDataset], **changes: Any) -> TrainBatches:
    return TrainBatches(datasets, **({"batch_size": 3, "accumulation": 2, "seed": 1, "pad_id": 0} | changes))


@pytest.fixture
def pairs(jsonl: Write, plain: PreTrainedTokenizerFast) -> EncodedDataset:
    rows = [{"prompt": "It was" * (n % 4), "completion": f" {n}"} for n in range(20)]
    return open_dataset(CompletionData(path=jsonl(rows)), tokenizer=plain, max_length=32)


@pytest.fixture
def text(jsonl: Write, plain: PreTrainedTokenizerFast) -> EncodedDataset:
    rows = [{"text": "It was great. " * (n + 1)} for n in range(6)]
    section = TextData(path=jsonl(rows, "text.jsonl"))
    return open_dataset(section, tokenizer=plain, max_length=16, model_type="llama")


@pytest.fixture
def task(jsonl: Write, plain: PreTrainedTokenizerFast) -> EncodedDataset:
    rows = [{"sentence": "It was" * n, "label": n % 2} for n in range(1, 8)]
    section = TaskData(path=jsonl(rows, "task.jsonl"), task="sst2")
    return open_dataset(section, tokenizer=plain, max_length=64)


def test_an_epoch_holds_every_example_once(pairs: EncodedDataset) -> None:
    batches = _batches([pairs])
    assert (batches.samples, batches.steps_per_epoch) == (20, 4)
    seen = [batch for step in range(4) for batch in batches.micro_batches(step)]
    assert [batch.examples for batch in seen] == [3, 3, 3, 3, 3, 3, 2]
    trained = Counter(
        tuple(ids[labels >= 0].tolist()) for b in seen for ids, labels in zip(b.input_ids, b.labels, strict=True)
    )
    expected = Counter(tuple(t for t in pairs[n].rows[0].labels if t >= 0) for n in range(20))
    assert trained == expected


def test_resumed_data_equals_uninterrupted_data(pairs: EncodedDataset) -> None:
    walked = [_batches([pairs]).micro_batches(step) for step in range(9)]
    fresh = _batches([pairs]).micro_batches(7)
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(walked[7], fresh, strict=True))


def test_layouts_of_a_mixture_are_kept_apart_and_nothing_is_lost(pairs: EncodedDataset, text: EncodedDataset) -> None:
    batches = _batches([pairs, text])
    seen = [batch for step in range(batches.steps_per_epoch) for batch in batches.micro_batches(step)]
    assert sum(batch.examples for batch in seen) == len(pairs) + len(text)
    assert all(batch.examples <= 3 for batch in seen)
    packed = [batch for batch in seen if batch.attention_mask is None]
    assert sum(batch.tokens for batch in packed) == sum(text[n].tokens for n in range(len(text)))


def test_tasks_are_not_mixed_with_token_losses(pairs: EncodedDataset, task: EncodedDataset) -> None:
    with pytest.raises(DataError, match="sst2 is a classification task, whose loss counts examples, and train counts"):
        _batches([pairs, task])
    assert _batches([task]).micro_batches(0)[0].options is not None


def test_no_dataset_is_refused() -> None:
    with pytest.raises(DataError, match="dataset: the list is empty"):
        _batches([])


def test_longest_batch_is_the_largest_one_of_training(pairs: EncodedDataset, task: EncodedDataset) -> None:
    for dataset in (pairs, task):
        batches = _batches([dataset], accumulation=1)
        largest = max(b.input_ids.numel() for s in range(batches.steps_per_epoch) for b in batches.micro_batches(s))
        longest = batches.longest()
        assert longest.examples == 3
        assert longest.input_ids.numel() >= largest
        assert longest.input_ids.shape[1] == max(dataset[n].length for n in range(len(dataset)))
    assert batches.longest(50).examples == 50


def test_epochs_and_steps_come_from_the_sampler(pairs: EncodedDataset) -> None:
    batches = _batches([pairs])
    assert batches.total_steps(epochs=1.5) == 6
    assert batches.total_steps(epochs=1.5, max_steps=2) == 2
    assert batches.epoch_of(2) == pytest.approx(0.6)
    assert batches.example(3) == pairs[3]


def test_weights_come_from_the_sections(plain: PreTrainedTokenizerFast) -> None:
    def problems(family: str, weight: float) -> EncodedDataset:
        section = ProceduralData(family=family, size=8, weight=weight)
        return open_dataset(section, tokenizer=plain, max_length=200)

    batches = _batches([problems("add", 2.0), problems("sum", 0.5)], batch_size=20, accumulation=1)
    assert sum(batch.examples for batch in batches.micro_batches(0)) == 20
