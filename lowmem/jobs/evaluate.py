"""`lowmem eval`: a model or a run, some datasets, and the metrics of each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from lowmem.config.dataset import Dataset
from lowmem.config.generation import GenerationConfig
from lowmem.data.dataset import EncodedDataset, open_dataset
from lowmem.errors import ConfigError
from lowmem.evaluate.evaluate import evaluate_dataset
from lowmem.events import EvalDone, Sink
from lowmem.generate.generate import generate_batch
from lowmem.jobs.target import DtypeName, open_target
from lowmem.models.load import pad_id
from lowmem.models.loss import ModelLoss

MAX_LENGTH = 512


def evaluate(
    target: str,
    datasets: Sequence[Dataset],
    *,
    batch_size: int = 8,
    limit: int | None = None,
    max_length: int | None = None,
    dtype: DtypeName | None = None,
    generation: GenerationConfig | None = None,
    generate: bool = True,
    device: str = "auto",
    sink: Sink,
) -> dict[str, dict[str, float]]:
    """Metrics by dataset name, in order; one `EvalDone` each on the way.

    `limit` examples at most of each. `max_length` and `generation` default to the run's own (512 tokens and greedy
    for a model that is no run). Answers are generated where the dataset has a verifier and `generate` is true.
    """
    if not datasets:
        raise ConfigError("eval: no dataset to evaluate on; name one with --dataset, or eval_dataset in the config")
    opened = open_target(target, sink=sink, device=device, dtype=dtype)
    length = max_length or (MAX_LENGTH if opened.run is None else opened.run.max_length)
    model, tokenizer = opened.loaded.model, opened.loaded.tokenizer
    read = partial(open_dataset, tokenizer=tokenizer, max_length=length, sink=sink, model_type=model.config.model_type)
    sets = name_apart([read(section) for section in datasets])
    loss = ModelLoss(model)
    answer = partial(generate_batch, model, tokenizer, config=generation or opened.generation)
    found: dict[str, dict[str, float]] = {}
    for name, dataset in sets.items():
        started = time.monotonic()
        found[name] = evaluate_dataset(
            loss,
            dataset,
            batch_size=batch_size,
            limit=limit,
            pad_id=pad_id(tokenizer),
            device=model.device,
            generate=answer if generate else None,
        )
        sink(EvalDone(step=0, split=name, metrics=found[name], seconds=time.monotonic() - started))
    return found


def name_apart(datasets: Sequence[EncodedDataset]) -> dict[str, EncodedDataset]:
    """The datasets by name; a name that comes again gets a number: "sst2", "sst2-2"."""
    named: dict[str, EncodedDataset] = {}
    for dataset in datasets:
        name, number = dataset.name, 1
        while name in named:
            number += 1
            name = f"{dataset.name}-{number}"
        named[name] = dataset
    return named
