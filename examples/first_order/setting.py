"""What all comparisons share: one model shape, its batches, and how two contestants are timed and weighed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lowmem.config.run import RunConfig
from lowmem.data.batch import Batch
from lowmem.plan.tracker import OPTIMIZER, LiveBytes

Step = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """A Llama of random weights in fp32, trained on `rows` x `tokens` random tokens."""

    width: int = 384
    layers: int = 4
    vocabulary: int = 8000
    rows: int = 4
    tokens: int = 256
    rank: int = 8
    rounds: int = 15

    def model(self) -> Any:
        """The same weights at every call."""
        from transformers import AutoModelForCausalLM, LlamaConfig

        config = LlamaConfig(
            hidden_size=self.width,
            intermediate_size=self.width * 8 // 3,
            num_hidden_layers=self.layers,
            num_attention_heads=6,
            vocab_size=self.vocabulary,
            tie_word_embeddings=True,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.config.use_cache = False
        return model

    def batch(self) -> Batch:
        """Every token is trained, none is padding."""
        ids = torch.randint(4, self.vocabulary, (self.rows, self.tokens), generator=torch.Generator().manual_seed(1))
        return Batch(ids, torch.ones_like(ids), ids)

    def config(self, method: dict[str, Any]) -> RunConfig:
        keys: dict[str, Any] = {"model": "none", "dataset": [{"format": "text", "path": "none"}], "dtype": "fp32"}
        return RunConfig(**keys, method=method)


@dataclass(frozen=True)
class Comparison:
    """`keys` go into the result's JSON, `rows` into its table: (what, ours, theirs, ours / theirs)."""

    keys: dict[str, float]
    rows: list[list[str]] = field(default_factory=list)


def timed_in_turn(ours: Step, theirs: Step, *, rounds: int, calls: int = 1) -> tuple[float, float, float]:
    """Median CPU seconds per call of each, and the median over rounds of ours / theirs.

    Alternating, each first in every other round; one thread is timed by its own clock, which other processes on the
    machine do not disturb. `calls`: consecutive calls per round, for steps whose cost comes in periods.
    """
    for _ in range(2):
        ours()
        theirs()
    left, right = [], []
    for index in range(rounds):
        for step, seconds in ((ours, left), (theirs, right))[:: 1 if index % 2 else -1]:
            seconds.append(_seconds(step, calls))
    ratios = [a / b for a, b in zip(left, right, strict=True)]
    return statistics.median(left), statistics.median(right), statistics.median(ratios)


def peak_bytes(step: Step, model: Any, state: Iterable[Tensor], *, vocabulary: int) -> int:
    """Largest sum of live tensor bytes during one `step`: weights, `state` and everything that comes and goes.

    Called after a first step, so that optimizers that make their state lazily have it.
    """
    tracker = LiveBytes(vocabulary=vocabulary)
    tracker.track_module(model)
    for tensor in state:
        tracker.track(tensor, OPTIMIZER)
    with tracker, tracker.phase("step"):
        step()
    return max(tracker.peaks.values())


def _seconds(step: Step, calls: int) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    for _ in range(calls):
        step()
    return (clock() - start) / calls
