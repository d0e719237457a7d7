"""One dataset, one model, the numbers that fit the kind of dataset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from lowmem.data.batch import Batch
from lowmem.data.collate import collate
from lowmem.data.samples import Example
from lowmem.evaluate.exact import Generate, Question, exact_match
from lowmem.evaluate.options import OptionTally
from lowmem.evaluate.perplexity import LossTally, perplexity
from lowmem.models.loss import LossSums


class Examples(Protocol):
    """What is evaluated: encoded examples by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class OptionScorer(Protocol):
    """A `LossFn` that also scores the options of a classification task, as `ModelLoss` does."""

    def __call__(self, batch: Batch) -> LossSums: ...

    def option_scores(self, batch: Batch) -> Tensor: ...


def evaluate_dataset(
    loss_fn: OptionScorer,
    dataset: Examples,
    *,
    batch_size: int,
    limit: int | None,
    pad_id: int,
    device: torch.device,
    generate: Generate | None,
) -> dict[str, float]:
    """Metrics of `dataset`, or of `limit` examples spread evenly over it.

    Always `loss`. Token datasets add `perplexity`; classification tasks add `accuracy` and, with two options,
    `accuracy_median_threshold` (see `lowmem.evaluate.options`); examples that bring a verifier add `exact_match`
    when `generate` is given. The caller puts the model into eval mode.
    """
    losses, options, questions = LossTally(), OptionTally(), list[Question]()
    with torch.no_grad():
        for examples in _groups(dataset, batch_size, limit):
            batch = collate(examples, pad_id=pad_id).to(device)
            if batch.options is None:
                losses.add(loss_fn(batch))
            else:
                scores = loss_fn.option_scores(batch)
                losses.add(option_losses(scores, batch.options.gold))
                options.add(scores, batch.options.gold)
            questions += [question for example in examples if (question := question_of(example))]
    chosen = options.metrics()
    metrics = {"loss": losses.mean} | (chosen or {"perplexity": perplexity(losses.mean)})
    if questions and generate is not None:
        metrics["exact_match"] = exact_match(questions, generate, batch_size=batch_size)
    return metrics


def option_losses(scores: Tensor, gold: Tensor) -> LossSums:
    """The cross-entropy of each example's scores (B, K), as training counts it."""
    losses = torch.nn.functional.cross_entropy(scores, gold, reduction="none")
    return LossSums(losses, torch.ones_like(losses))


def chosen_indices(length: int, limit: int | None) -> list[int]:
    """All indices, or `limit` of them evenly spread: a file sorted by label still gives every label."""
    if limit is None or limit >= length:
        return list(range(length))
    return [number * length // limit for number in range(limit)]


def _groups(dataset: Examples, batch_size: int, limit: int | None) -> Iterator[list[Example]]:
    """Batches of examples that may stand in one batch, in order."""
    waiting: dict[tuple[str, int], list[Example]] = {}
    for index in chosen_indices(len(dataset), limit):
        example = dataset[index]
        group = waiting.setdefault(example.group, [])
        group.append(example)
        if len(group) == batch_size:
            yield waiting.pop(example.group)
    yield from waiting.values()


def question_of(example: Example) -> Question | None:
    """The question that `example` brings, if its answer can be checked."""
    item = example.evaluation
    if item is None or item.verifier is None:
        return None
    return Question(item.prompt_ids, item.verifier, item.references)
