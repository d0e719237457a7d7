"""The cells of `compare_first_order.py`: one training run each, and what a grid of them says."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from protocol import Protocol, mean_std, verdict

from lowmem.config.run import RunConfig
from lowmem.data.dataset import open_dataset
from lowmem.data.train_batches import TrainBatches
from lowmem.errors import NonFiniteError
from lowmem.evaluate.evaluate import evaluate_dataset
from lowmem.methods.build import build_method
from lowmem.models.load import LoadedModel, ignore_event, load_model, pad_id
from lowmem.models.loss import ModelLoss
from lowmem.models.modes import eval_mode
from lowmem.models.source import ModelSource
from lowmem.train.schedule import Schedule, warmup_steps

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Curve:
    """Held-out losses of one method on one task: by rate, one a seed."""

    task: str
    method: str
    losses: dict[float, list[float]]

    @property
    def means(self) -> dict[float, float]:
        return {rate: mean_std(values)[0] for rate, values in sorted(self.losses.items())}

    @property
    def best_mean(self) -> float:
        return min(self.means.values())

    @property
    def best(self) -> tuple[float, tuple[float, float]]:
        """The best rate, and mean and standard deviation there."""
        rate = min(self.means, key=lambda rate: self.means[rate])
        return rate, mean_std(self.losses[rate])

    def bound_of_improvement(self, base: float, share: float) -> float:
        """The loss that makes up `share` of the best improvement over `base`."""
        return base - share * (base - self.best_mean)


def decades(curve: Curve, bound: float) -> float:
    """log10 of the widest span of neighbouring rates whose mean loss is at most `bound`."""
    widest, start = 0.0, None
    for rate, mean in curve.means.items():
        if mean > bound:
            start = None
            continue
        start = start or rate
        widest = max(widest, math.log10(rate / start))
    return round(widest, 2)


def wins(found: list[Curve], ours: str, theirs: str) -> tuple[int, dict[str, str]]:
    """On how many tasks `ours` at its best rate is at most `theirs` at its own, and `verdict` on each."""
    count, verdicts = 0, {}
    for task in sorted({curve.task for curve in found}):
        left, right = (next(c for c in found if (c.task, c.method) == (task, m)) for m in (ours, theirs))
        count += left.best_mean <= right.best_mean
        verdicts[task] = str(verdict(left.losses[left.best[0]], right.losses[right.best[0]]))
    return count, verdicts


def curves(protocol: Protocol, data: Path) -> list[Curve]:
    """Every cell of the grid, computed where it is missing."""
    torch.set_num_threads(1)
    keys, found = protocol.settings, []
    for task, method in itertools.product(keys["tasks"], keys["methods"]):
        losses = {
            rate: [_cell(protocol, data, task, method, rate, s) for s in keys["seeds"]]
            for rate in keys["rates"][method]
        }
        found.append(Curve(task, method, losses))
    return found


def base_losses(protocol: Protocol, data: Path) -> dict[str, float]:
    """Held-out loss of the base model on every task."""
    return {
        task: float(protocol.cell({"task": task, "base": True}, lambda task=task: _base(protocol, data, task))["loss"])
        for task in protocol.settings["tasks"]
    }


def _cell(protocol: Protocol, data: Path, task: str, method: str, rate: float, seed: int) -> float:
    key = {"task": task, "method": method, "rate": rate, "seed": seed}

    def compute() -> dict[str, Any]:
        config = _config(protocol, data, task, protocol.settings["methods"][method], rate, seed)
        try:
            loss = Run(config).trained(protocol.settings["steps"])
        except NonFiniteError:
            loss = math.inf
        print(key, f"{loss:.4f}", flush=True)
        return {"loss": loss if math.isfinite(loss) else None}

    loss = protocol.cell(key, compute)["loss"]
    return math.inf if loss is None else float(loss)


def _base(protocol: Protocol, data: Path, task: str) -> dict[str, Any]:
    return {"loss": Run(_config(protocol, data, task, {"kind": "lora"}, 1e-3, 0)).held_out()}


class Run:
    """One run in this process: the parts of `lowmem train` without its run folder."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._loaded: LoadedModel = load_model(ModelSource.from_config(config), device=CPU)
        self._train, self._held_out = (self._open(section) for section in (config.dataset[0], config.eval_dataset[0]))
        self._method = build_method(config, self._loaded.model)
        self._loss = ModelLoss(self._loaded.model, chunk_tokens=config.loss_chunk_tokens)

    def trained(self, steps: int) -> float:
        """Held-out loss after `steps` steps. Raises `NonFiniteError` when training breaks down."""
        config = self._config
        batches = TrainBatches(
            [self._train],
            batch_size=config.per_device_train_batch_size,
            accumulation=1,
            seed=config.seed,
            pad_id=pad_id(self._loaded.tokenizer),
            device=CPU,
        )
        warmup = warmup_steps(steps=0, ratio=config.warmup_ratio, total=steps)
        schedule = Schedule(config.schedule, config.peak_learning_rate, steps, warmup)
        for step in range(steps):
            self._method.step(self._loss, batches.micro_batches(step), lr=schedule.rate(step), step=step)
        return self.held_out()

    def held_out(self) -> float:
        with eval_mode(self._loaded.model), torch.no_grad():
            metrics = evaluate_dataset(
                self._loss,
                self._held_out,
                batch_size=16,
                limit=self._config.eval_limit,
                pad_id=pad_id(self._loaded.tokenizer),
                device=CPU,
                generate=None,
            )
        return float(metrics["loss"])

    def _open(self, section: Any) -> Any:
        return open_dataset(
            section,
            tokenizer=self._loaded.tokenizer,
            max_length=self._config.max_length,
            train_on_prompt=False,
            seed=self._config.seed,
            sink=ignore_event,
            model_type=self._loaded.model.config.model_type,
        )


def _config(protocol: Protocol, data: Path, task: str, method: dict[str, Any], rate: float, seed: int) -> RunConfig:
    keys = protocol.settings
    train, held_out = sections(task, data, protocol.folder)
    adapter = {"lora_r": keys["rank"], "lora_target_modules": keys["target_modules"]} if "rank" in keys else {}
    return RunConfig.model_validate(
        {
            "model": _model(keys["model"]),
            "dtype": "fp32",
            "device": "cpu",
            "dataset": [train],
            "eval_dataset": [held_out],
            "eval_limit": keys["eval_rows"],
            "max_length": keys["tasks"][task]["max_length"],
            "per_device_train_batch_size": keys["tasks"][task]["rows"],
            "method": method | adapter,
            "learning_rate": rate,
            "lr_scheduler_type": "linear",
            "warmup_ratio": 0.05,
            "max_grad_norm": keys["max_grad_norm"],
            "seed": seed,
        }
    )


def _model(name: str) -> str:
    if not name.startswith("small-lm-"):
        return name
    from pretrain_small import small_lm

    return str(small_lm(name.removeprefix("small-lm-")))


def sections(task: str, data: Path, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The training and the held-out part of `task`; parts that are not files yet are written below `folder`."""
    match task:
        case "procedural":
            family = {"format": "procedural", "family": "sub", "size": 200}
            return family, family | {"data_seed": 1}
        case "sst2":
            keys = {"format": "task", "task": "sst2"}
            held_out = keys | {"path": str(data / "sst2" / "validation.jsonl"), "limit": 256}
            return keys | {"path": str(data / "sst2" / "train.jsonl"), "limit": 1000}, held_out
        case "instructions":
            lines = (data / "instructions" / "alpaca_1100.jsonl").read_text(encoding="utf-8").strip().split("\n")
            parts = _written(folder, task, lines[:-200], lines[-200:])
            return {"format": "alpaca", "path": parts[0]}, {"format": "alpaca", "path": parts[1]}
        case "wikitext2":
            from pretrain_small import articles

            text = (data / "wikitext2" / "test.txt").read_text(encoding="utf-8")
            lines = [json.dumps({"text": article}) for article in articles(text) if article.strip()]
            parts = _written(folder, task, lines[: len(lines) // 2], lines[len(lines) // 2 :])
            return {"format": "text", "path": parts[0]}, {"format": "text", "path": parts[1]}
        case _:
            raise SystemExit(f"no such task: {task}")


def _written(folder: Path, task: str, *parts: list[str]) -> list[str]:
    target = folder / "data"
    target.mkdir(parents=True, exist_ok=True)
    paths = [target / f"{task}-{index}.jsonl" for index in range(len(parts))]
    for path, lines in zip(paths, parts, strict=True):
        if not path.is_file():
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [str(path) for path in paths]
