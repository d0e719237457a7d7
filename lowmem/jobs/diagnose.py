"""`lowmem diagnose forgetting`: one config with a grid in, every run of it trained and measured, and one report out.

The runs are a batch (`OUTPUT/jobs.yaml`), so they are planned before the first one starts, run side by side where they
fit, survive crashes, and are done once: `lowmem batch status`, `logs` and `retry` work on them. What is measured of a
run is kept in its folder, so a second call only draws the report.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import yaml

from lowmem.batch.ledger import Entry
from lowmem.config.forgetting import Forgetting
from lowmem.config.load import dump_run
from lowmem.config.run import RunConfig
from lowmem.config.yaml_source import Dumper
from lowmem.data.collate import grouped_batches
from lowmem.data.dataset import open_dataset
from lowmem.diagnose.activations import Sparsity, by_kind, measure_activations
from lowmem.diagnose.forgetting import Cell, Summary, divergence, read_points, summarize
from lowmem.diagnose.pareto import Point
from lowmem.diagnose.updates import UpdateNorms, bounds, measure_updates
from lowmem.errors import ConfigError
from lowmem.events import Notice, Sink
from lowmem.jobs import batch
from lowmem.jobs.folder import write_atomically
from lowmem.jobs.forgetting_page import forgetting_page
from lowmem.jobs.target import open_target
from lowmem.models.load import LoadedModel, load_model, pad_id
from lowmem.models.source import ModelSource, pick_device
from lowmem.report.elements import write_whole
from lowmem.train.record import read_metrics

if TYPE_CHECKING:
    from lowmem.data.batch import Batch

CELL_FILE = "forgetting.json"
BATCH_SIZE = 8


@dataclass(frozen=True)
class ForgettingReport:
    """`activations`: of the model as it was, on old and on new text, by kind of layer. `failed`: job and reason."""

    page: Path
    summary: Summary
    cells: list[Cell]
    activations: dict[str, dict[str, Sparsity]]
    failed: dict[str, str]


def forgetting(
    config: RunConfig,
    *,
    sink: Sink,
    watch: Callable[[Sequence[Entry]], None],
    check: batch.Check | None = None,
    max_parallel: int | None = None,
) -> ForgettingReport:
    """Every run of the grid is trained and measured, and `output_dir` holds forgetting.html and forgetting.json.

    Raises `ConfigError` before anything runs when there is no grid or nothing that could be forgotten, and when no
    run of the grid came to an end; `Interrupted` after a signal, with everything that was done kept.
    """
    grid = _checked(config)
    folder = Path(config.output_dir)
    jobs = write_batch(config, grid, folder)
    prepared = batch.prepare(jobs, sink=sink, check=check)
    entries = batch.run(prepared, watch=watch, max_parallel=max_parallel)
    done = [entry for entry in entries if entry.state == "done"]
    failed = {entry.name: entry.error or entry.state for entry in entries if entry.state != "done"}
    if not done:
        name, reason = next(iter(failed.items()))
        raise ConfigError(f"forgetting: no run of the grid came to an end; {name}: {reason} (lowmem batch logs {jobs})")
    ruler = _Ruler(config, grid, folder, sink)
    cells = [ruler.cell(entry) for entry in done]
    report = ForgettingReport(
        folder / "forgetting.html", summarize(cells, grid.levels), cells, ruler.activations(), failed
    )
    write_atomically(folder / CELL_FILE, json.dumps(asdict(report), indent=1, default=str))
    page = forgetting_page(report.summary, cells, report.activations, failed, title=config.run_name or folder.name)
    write_whole(report.page, page)
    return report


def write_batch(config: RunConfig, grid: Forgetting, folder: Path) -> Path:
    """The grid as a batch of training jobs, in `folder`; returns its file."""
    folder.mkdir(parents=True, exist_ok=True)
    base = config.model_copy(update={"forgetting": None, "learning_rate": None})
    write_atomically(folder / "run.yaml", dump_run(base))
    seeds = list(grid.seeds or (config.seed,))
    jobs = {
        name: {
            "train": str(folder / "run.yaml"),
            "set": dict(arm.set),
            "matrix": {"learning_rate": list(arm.learning_rate), "seed": seeds},
            "tags": [name],
        }
        for name, arm in grid.arms.items()
    }
    content = {"output_dir": str(folder / "cells"), "jobs": jobs}
    write_atomically(folder / "jobs.yaml", str(yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True)))
    return folder / "jobs.yaml"


def _checked(config: RunConfig) -> Forgetting:
    """The grid. Raises `ConfigError` when the config cannot answer the question."""
    if config.forgetting is None:
        raise ConfigError(
            "forgetting: the config has no grid; add `forgetting: {arms: {adamw: {learning_rate: [1e-5, 1e-4]}}}`, "
            "or start from the preset tiny-forgetting"
        )
    if len(config.eval_dataset) < 2:
        raise ConfigError(
            f"eval_dataset: has {len(config.eval_dataset)} of the two datasets that are needed: held-out samples of "
            "the new task first, then text of the old distribution, which must not be in the training data"
        )
    if config.learning_rate is not None:
        raise ConfigError("learning_rate: is what the arms of forgetting vary; remove it from the run")
    if any("learning_rate" in arm.set for arm in config.forgetting.arms.values()):
        raise ConfigError("forgetting.arms: learning_rate stands beside `set` and not in it, as a list")
    return config.forgetting


class _Ruler:
    """Measures runs against the model they started from, which is loaded once, and only if something is missing."""

    def __init__(self, config: RunConfig, grid: Forgetting, folder: Path, sink: Sink) -> None:
        self._config, self._grid, self._folder, self._sink = config, grid, folder, sink
        self._loaded: LoadedModel | None = None
        self._sparsity: dict[str, dict[str, Sparsity]] | None = None

    def cell(self, entry: Entry) -> Cell:
        """What `entry` learned and forgot, measured now or read from its folder."""
        run = Path(entry.folder)
        file = run / CELL_FILE
        if not file.is_file():
            write_atomically(file, json.dumps(asdict(self._measured(entry, run)), indent=1))
        stored = json.loads(file.read_text())
        return Cell(**stored | {"points": tuple(Point(**point) for point in stored["points"])})

    def activations(self) -> dict[str, dict[str, Sparsity]]:
        """Of the base: {"old": by kind of layer, "new": by kind of layer}."""
        return {text: by_kind(layers) for text, layers in self._layers().items()}

    def _measured(self, entry: Entry, run: Path) -> Cell:
        self._sink(Notice(f"measuring {entry.name}"))
        tuned = open_target(str(run), sink=self._sink, device=self._config.device).loaded.model
        norms = measure_updates(self._base().model, tuned)
        values = {name: asdict(one) for name, one in norms.items()}
        names = [field.name for field in dataclasses.fields(UpdateNorms)]
        records = read_metrics(run / "metrics.jsonl")
        metric, maximize = self._config.metric_for_best_model, self._config.maximize_metric
        return Cell(
            arm=entry.tags[0],
            learning_rate=float(entry.point["learning_rate"]),
            seed=int(entry.point["seed"]),
            points=read_points(records, metric=metric, maximize=maximize),
            divergence=divergence(self._base().model, tuned, self._batches("old")),
            bounds=bounds(values, self._layers()["old"]),
            updates={name: fmean(one[name] for one in values.values()) for name in names},
        )

    def _layers(self) -> dict[str, dict[str, Sparsity]]:
        """Of every layer of the base, measured once and kept beside the report."""
        if self._sparsity is None:
            file = self._folder / "activations.json"
            if not file.is_file():
                found = {text: measure_activations(self._base().model, self._batches(text)) for text in ("old", "new")}
                write_atomically(file, json.dumps({t: {n: asdict(s) for n, s in x.items()} for t, x in found.items()}))
            stored = json.loads(file.read_text())
            self._sparsity = {text: {n: Sparsity(**s) for n, s in layers.items()} for text, layers in stored.items()}
        return self._sparsity

    def _base(self) -> LoadedModel:
        if self._loaded is None:
            source, device = ModelSource.from_config(self._config), pick_device(self._config.device)
            self._loaded = load_model(source, device=device, sink=self._sink)
        return self._loaded

    def _batches(self, text: str) -> list[Batch]:
        """The first `samples` rows of the new task, or of each old dataset."""
        loaded, config = self._base(), self._config
        sections = config.eval_dataset[:1] if text == "new" else config.eval_dataset[1:]
        found: list[Batch] = []
        for section in sections:
            dataset: Any = open_dataset(
                section,
                tokenizer=loaded.tokenizer,
                max_length=config.max_length,
                sink=self._sink,
                model_type=loaded.model.config.model_type,
            )
            examples = [dataset[index] for index in range(min(self._grid.samples, len(dataset)))]
            found += grouped_batches(examples, size=BATCH_SIZE, pad_id=pad_id(loaded.tokenizer))
        return [part.to(loaded.model.device) for part in found]
