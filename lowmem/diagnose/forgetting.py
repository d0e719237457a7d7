"""What one run learned and forgot, and what many runs say together.

    learning    of the new task: by how much its held-out loss fell (or a metric rose)
    forgetting  of the old: by how much its loss rose, meaned over the old datasets; negative where it fell
    divergence  KL(before | after) of the next token on old text, in nats

Training records all evaluations, so each of a run's is a point: at learning rate zero, and at step zero, both are
exactly zero. A seed has a front of its own; numbers of a method are means over seeds with their standard deviation.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lowmem.data.batch import Batch
from lowmem.diagnose.pareto import Point, common_levels, forgetting_at, hypervolume, rank_correlation
from lowmem.diagnose.updates import INPUTS
from lowmem.errors import FormatError
from lowmem.events import EvalDone

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Record = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One finished run. `points`: of its evaluations, the last of them the final one. `bounds`: see `updates.py`."""

    arm: str
    learning_rate: float
    seed: int
    points: tuple[Point, ...]
    divergence: float
    bounds: dict[str, float]
    updates: dict[str, float]
    """Means over matrices of each norm of the change, and of its stable rank."""

    @property
    def final(self) -> Point:
        return self.points[-1]


@dataclass(frozen=True)
class Spread:
    """Mean over seeds, and their sample standard deviation (0 for one seed)."""

    mean: float
    std: float
    seeds: int


@dataclass(frozen=True)
class ArmSummary:
    """`matched`: forgetting at each common level of learning, None where a seed does not reach it."""

    arm: str
    cells: int
    most_learned: float
    matched: tuple[Spread | None, ...]
    hypervolume: Spread


@dataclass(frozen=True)
class Summary:
    """`correlations`: of each product of norms with measured forgetting over all cells, by ranks."""

    levels: tuple[float, ...]
    arms: tuple[ArmSummary, ...]
    correlations: dict[str, float | None]


def read_points(records: Sequence[Record], *, metric: str, maximize: bool) -> tuple[Point, ...]:
    """The evaluations of a run: the first dataset is the new task, the others are the old distribution.

    Raises `FormatError` when the record lacks the evaluation before training, or fewer than two datasets.
    """
    steps: dict[int, dict[str, Mapping[str, float]]] = {}
    start: dict[str, Mapping[str, float]] = {}
    for record in records:
        if record["event"] != EvalDone.__name__:
            continue
        moment, _, name = str(record["split"]).partition(":")
        where = start if moment == "before" else steps.setdefault(int(record["step"]), {})
        where[name] = record["metrics"]
    if len(start) < 2 or not steps:
        raise FormatError("metrics.jsonl: has no evaluation of two datasets before and after training; train it again")
    new, *old = start
    sign = 1.0 if maximize else -1.0

    def point(after: Mapping[str, Mapping[str, float]]) -> Point:
        rises = [after[name]["loss"] - start[name]["loss"] for name in old]
        return Point(sign * (after[new][metric] - start[new][metric]), statistics.fmean(rises))

    found = (point(steps[step]) for step in sorted(steps))
    return tuple(p for p in found if math.isfinite(p.learning) and math.isfinite(p.forgetting))


def divergence(base: PreTrainedModel, tuned: PreTrainedModel, batches: Iterable[Batch]) -> float:
    """Mean KL(base | tuned) of the next token after every trained position, in nats."""
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            p, q = (_log_probabilities(model, batch) for model in (base, tuned))
            total += float((p.exp() * (p - q)).sum())
            count += len(p)
    return total / max(1, count)


def summarize(cells: Sequence[Cell], levels: int) -> Summary:
    """All arms at the same levels of learning, which every seed of every arm reaches."""
    groups: dict[str, dict[int, list[Point]]] = {}
    for cell in cells:
        groups.setdefault(cell.arm, {}).setdefault(cell.seed, []).extend(cell.points)
    every = [points for seeds in groups.values() for points in seeds.values()]
    common = common_levels(every, levels)
    worst = max((p.forgetting for points in every for p in points), default=0.0)
    arms = tuple(_summary_of(arm, seeds, cells, common, worst) for arm, seeds in groups.items())
    rises = [cell.final.forgetting for cell in cells]
    correlations = {norm: rank_correlation([cell.bounds[norm] for cell in cells], rises) for norm in INPUTS}
    return Summary(tuple(common), arms, correlations)


def _summary_of(
    arm: str, seeds: Mapping[int, Sequence[Point]], cells: Sequence[Cell], levels: Sequence[float], worst: float
) -> ArmSummary:
    def at(level: float) -> Spread | None:
        found = [forgetting_at(level, points) for points in seeds.values()]
        known = [value for value in found if value is not None]
        return _spread(known) if len(known) == len(found) else None

    return ArmSummary(
        arm=arm,
        cells=sum(cell.arm == arm for cell in cells),
        most_learned=max((p.learning for points in seeds.values() for p in points), default=0.0),
        matched=tuple(at(level) for level in levels),
        hypervolume=_spread([hypervolume(points, worst) for points in seeds.values()]),
    )


def _spread(values: Sequence[float]) -> Spread:
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return Spread(statistics.fmean(values), std, len(values))


def _log_probabilities(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """(N, V) fp32 at the trained positions."""
    positions: dict[str, Any] = {} if batch.position_ids is None else {"position_ids": batch.position_ids}
    out = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **positions)
    rows, columns = batch.positions
    found: torch.Tensor = out.logits[rows, columns].float().log_softmax(-1)
    return found
