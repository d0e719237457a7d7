"""The tasks of `compare_zo`: which rows train, which rows judge, and the model that starts from them."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from movie_reviews import read_reviews
from pretrain_small import small_lm

from lowmem.config.dataset import Dataset
from lowmem.config.run import RunConfig
from lowmem.data.dataset import EncodedDataset, open_dataset
from lowmem.models.embedded import EMBEDDED
from lowmem.models.load import LoadedModel, load_config, load_model
from lowmem.models.source import ModelSource

SPLIT_SEED = 0
"""The rows of a task are the same for every method and every seed of a comparison."""


@dataclass(frozen=True)
class Setting:
    """One task of a protocol's tier: `model` by name, sizes in rows."""

    task: str
    model: str
    train_rows: int
    eval_rows: int
    max_length: int
    batch_size: int


@dataclass(frozen=True)
class Start:
    """What every method begins from: fresh weights, encoded rows to train on and rows to judge by."""

    loaded: LoadedModel
    train: EncodedDataset
    judge: EncodedDataset


def run_config(setting: Setting, method: dict[str, Any], rate: float | None, seed: int, work: Path) -> RunConfig:
    """The config of one run; rows are written to `work`, outside the project."""
    train, judge = _sections(setting, work)
    keys: dict[str, Any] = {
        "model": setting.model if setting.model in EMBEDDED else str(small_lm()),
        "dtype": "fp32",
        "dataset": [train],
        "eval_dataset": [judge],
        "max_length": setting.max_length,
        "method": method,
        "per_device_train_batch_size": setting.batch_size,
        "loss_chunk_tokens": 2048,
        "seed": seed,
    }
    return RunConfig.model_validate(keys | ({} if rate is None else {"learning_rate": rate}))


def open_start(config: RunConfig) -> Start:
    """The model and both datasets of `config`, on the CPU."""
    source = ModelSource.from_config(config)
    loaded = load_model(source, device=torch.device("cpu"), sink=lambda event: None)
    kind = load_config(source).model_type

    def opened(section: Dataset) -> EncodedDataset:
        return open_dataset(
            section,
            tokenizer=loaded.tokenizer,
            max_length=config.max_length,
            train_on_prompt=False,
            seed=SPLIT_SEED,
            sink=lambda event: None,
            model_type=kind,
        )

    return Start(loaded, opened(config.dataset[0]), opened(config.eval_dataset[0]))


def _sections(setting: Setting, work: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config sections of the training rows and of the rows to judge by."""
    data = Path(__file__).resolve().parents[3] / "shared" / "data"
    sizes = {"limit": setting.train_rows}, {"limit": setting.eval_rows}
    match setting.task.split("/"):
        case ["sst2"]:
            common = {"format": "task", "task": "sst2"}
            train, judge = data / "sst2" / "train.jsonl", data / "sst2" / "validation.jsonl"
        case ["movie-reviews"]:
            common = {"format": "task", "task": "sst2"}
            rows = [{"sentence": text, "label": label} for text, label in read_reviews("rotten_tomatoes")]
            train, judge = _split(rows, setting, work)
        case ["alpaca"]:
            common = {"format": "alpaca"}
            path = data / "instructions" / "alpaca_1100.jsonl"
            with path.open(encoding="utf-8") as file:
                train, judge = _split([json.loads(line) for line in file], setting, work)
        case ["procedural", family]:
            common = {"format": "procedural", "family": family}
            return (
                common | {"size": setting.train_rows, "data_seed": 2},
                common | {"size": setting.eval_rows, "data_seed": 1},
            )
        case _:
            raise SystemExit(f"{setting.task!r} is no task; tasks: sst2, movie-reviews, alpaca, procedural/FAMILY")
    return common | sizes[0] | {"path": str(train)}, common | sizes[1] | {"path": str(judge)}


def _split(rows: list[dict[str, Any]], setting: Setting, work: Path) -> tuple[Path, Path]:
    """Two files of disjoint rows, drawn once."""
    drawn = random.Random(SPLIT_SEED).sample(rows, len(rows))
    files = work / f"{setting.task}-train.jsonl", work / f"{setting.task}-judge.jsonl"
    parts = drawn[setting.eval_rows :], drawn[: setting.eval_rows]
    work.mkdir(parents=True, exist_ok=True)
    for path, part in zip(files, parts, strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return files
