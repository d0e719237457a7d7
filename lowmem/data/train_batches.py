"""The data of a run: datasets, the order of their rows, and padding, addressable by step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lowmem.data.batch import Batch
from lowmem.data.collate import collate, grouped_batches
from lowmem.data.dataset import EncodedDataset
from lowmem.data.sampler import Sampler
from lowmem.data.samples import Example
from lowmem.errors import DataError


class TrainBatches:
    """Micro-batches as a pure function of the step.

    A micro-batch holds at most `batch_size` examples, all of one layout; where packed text, padded rows or tasks of
    different layouts are mixed, a step may have more micro-batches than `accumulation`, never larger ones.
    """

    def __init__(
        self,
        datasets: Sequence[EncodedDataset],
        *,
        batch_size: int,
        accumulation: int = 1,
        seed: int,
        pad_id: int,
        device: torch.device | None = None,
    ) -> None:
        _check_kinds(datasets)
        self._datasets, self._pad_id, self._batch_size = tuple(datasets), pad_id, batch_size
        self._accumulation, self._halved = accumulation, False
        self._device = device or torch.device("cpu")
        self._sampler = Sampler(
            [len(dataset) for dataset in datasets],
            [dataset.weight for dataset in datasets],
            batch_size=batch_size,
            accumulation=accumulation,
            seed=seed,
        )

    @property
    def samples(self) -> int:
        """Rows of all datasets together."""
        return sum(map(len, self._datasets))

    @property
    def steps_per_epoch(self) -> int:
        return self._sampler.steps_per_epoch

    def total_steps(self, *, epochs: float, max_steps: int | None = None) -> int:
        """`max_steps` when given, else the steps of `epochs`."""
        return self._sampler.total_steps(epochs=epochs, max_steps=max_steps)

    def epoch_of(self, step: int) -> float:
        """Passes over the data completed when `step` updates are done."""
        return self._sampler.epoch_of(step)

    def micro_batches(self, step: int) -> list[Batch]:
        """The effective batch of `step`, on the device."""
        batches: list[Batch] = []
        for places in self._sampler.batch_indices(step):
            examples = [self._datasets[dataset][row] for dataset, row in places]
            batches += grouped_batches(examples, size=self._batch_size, pad_id=self._pad_id)
        return [batch.to(self._device) for batch in batches]

    def halve(self) -> int | None:
        """From now on micro-batches hold half as many examples, and steps more of them; returns the new size.

        The rows of a step and their order stay the same. None when a micro-batch is down to one example.
        """
        if self._batch_size == 1:
            return None
        self._batch_size, self._halved = -(-self._batch_size // 2), True
        return self._batch_size

    def largest(self) -> list[Batch]:
        """Micro-batches as large as a step can have; two where a step has several, as gradients then lie beside."""
        several = self._accumulation > 1 or self._halved
        return [self.longest()] * (2 if several else 1)

    def example(self, index: int) -> Example:
        """Example `index` of the first dataset."""
        return self._datasets[0][index]

    def longest(self, n: int | None = None) -> Batch:
        """The batch of the `n` (default: a micro-batch) longest examples among those surveyed, for a rehearsal.

        When there are fewer, the longest is repeated: the batch is as large as the largest one in training.
        """
        wanted = self._batch_size if n is None else n
        examples = [dataset[row] for dataset in self._datasets for row in dataset.survey.longest(wanted)]
        examples.sort(key=lambda example: -example.tokens)
        same = [example for example in examples if example.group == examples[0].group][:wanted]
        filled = same + [same[0]] * (wanted - len(same))
        return collate(filled, pad_id=self._pad_id).to(self._device)


def _check_kinds(datasets: Sequence[EncodedDataset]) -> None:
    if not datasets:
        raise DataError("dataset: the list is empty; name at least one dataset to train on")
    kinds = {dataset.kind: dataset.name for dataset in datasets}
    if len(kinds) > 1:
        raise DataError(
            f"dataset: {kinds['options']} is a classification task, whose loss counts examples, and {kinds['tokens']} "
            "counts tokens; their mean would have no meaning. Train on one kind at a time, or write the task as "
            "format: completion"
        )
