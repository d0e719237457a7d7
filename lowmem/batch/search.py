"""Draws settings, trains with each, stops the worse ones early (ASHA, arXiv 1810.05934, by Ray Tune). A job of its own.

`python -m lowmem.batch.search SEARCH.JSON` prints the result as JSON. Every trial is a run folder under `trials/`, a
process that is killed when Tune gives the trial up. The same seed draws the same settings, so a search that was
interrupted walks over its trials again: those that ended answer at once, the others go on from their checkpoints.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lowmem.batch.attempt import launch, read_end
from lowmem.batch.spec import Search
from lowmem.batch.task import SearchOrder, why
from lowmem.config.load import dump_run, load_run
from lowmem.errors import ConfigError, LowmemError
from lowmem.train.record import read_metrics

LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Trial:
    """One draw and what came of it. `stopped`: given up because others were better."""

    name: str
    settings: dict[str, Any]
    value: float | None
    evaluations: int
    stopped: bool
    folder: str
    error: str | None


def run_search(order: SearchOrder) -> dict[str, Any]:
    """The best trial's settings and value, and all trials. Raises `ConfigError` when none came to a value."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    search = Search.model_validate(order.search)
    scheduler = ASHAScheduler(
        time_attr="evaluations",
        metric="value",
        mode="max" if search.maximize else "min",
        max_t=order.evaluations + 1,  # at max_t Tune would kill a run that is about to write its result
        grace_period=search.grace,
        reduction_factor=search.reduction,
    )
    resources: dict[str, float] = {"cpu": 1} if order.need is None else {"cpu": 1, "memory": order.need}
    space = {key: _domain(draw) for key, draw in search.space.items()}
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_trial, order=asdict(order)), resources),
        param_space=space,
        tune_config=tune.TuneConfig(
            scheduler=scheduler,
            num_samples=search.trials,
            max_concurrent_trials=order.at_once,
            search_alg=tune.search.BasicVariantGenerator(random_state=search.seed, max_concurrent=order.at_once),
        ),
        run_config=tune.RunConfig(name="tune", storage_path=str(Path(order.folder).absolute()), verbose=0),
    )
    trials = sorted((_read(result, order) for result in tuner.fit()), key=lambda trial: trial.name)
    valued = [trial for trial in trials if trial.value is not None and math.isfinite(trial.value)]
    if not valued:
        raise ConfigError(f"search: no trial came to a {search.metric}; the first said: {trials[0].error}")
    best = (max if search.maximize else min)(valued, key=lambda trial: trial.value or 0.0)
    return {
        "best": {search.metric: best.value, **best.settings},
        "best_trial": best.folder,
        "trials": [asdict(trial) for trial in trials],
    }


def _domain(draw: Mapping[str, tuple[Any, ...]]) -> Any:
    from ray import tune

    (kind, values), *_ = draw.items()
    match kind:
        case "choice":
            return tune.choice(list(values))
        case "uniform":
            return tune.uniform(*values)
        case "log_uniform":
            return tune.loguniform(*values)
        case _:
            return tune.randint(values[0], values[1] + 1)


def _trial(settings: dict[str, Any], *, order: dict[str, Any]) -> None:
    """On a worker: one run of the drawn settings, its evaluations reported to Tune as they come."""
    from ray import tune

    search = Search.model_validate(order["search"])
    number = int(str(tune.get_context().get_trial_id()).rpartition("_")[2])
    folder = Path(order["folder"]) / "trials" / f"{number:03d}"
    changes = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    config = load_run(Path(order["config"]), [*changes, f"output_dir={json.dumps(str(folder))}"]).config
    attempt = Path(order["folder"]) / "attempts" / f"{number:03d}-{time.time_ns()}"
    attempt.mkdir(parents=True)
    (attempt / "config.yaml").write_text(dump_run(config))
    resume = ["--resume"] if (folder / "config.yaml").is_file() else []
    argv = [sys.executable, "-m", "lowmem", "train", str(attempt / "config.yaml"), *resume]
    process = launch(attempt, argv, env={}, timeout=None, cwd=Path(order["cwd"]), outlives=False)
    seen = 0
    while True:
        over = process.poll() is not None
        for value in list(_values(folder, search.metric))[seen:]:
            seen += 1
            tune.report({"value": value, "evaluations": seen, "trial": folder.name})
        if over:
            break
        time.sleep(LOOK_SECONDS)
    end = read_end(attempt)
    if end is None or end.code:
        raise LowmemError("killed" if end is None else why(end.code, end.timed_out, attempt))


def _values(folder: Path, metric: str) -> Iterator[float]:
    """The metric of the first dataset at every evaluation after the first step."""
    if not (folder / "metrics.jsonl").is_file():
        return
    first: str | None = None
    for record in read_metrics(folder / "metrics.jsonl"):
        if record["event"] != "EvalDone" or int(record["step"]) == 0:
            continue
        name = str(record["split"]).partition(":")[2]
        first = first or name
        if name == first:
            value = record["metrics"].get(metric)
            if value is None:
                raise ConfigError(f"search.metric: {metric!r} is not a metric: {', '.join(record['metrics'])}")
            yield float(value)


def _read(result: Any, order: SearchOrder) -> Trial:
    """A trial as Tune left it."""
    metrics = result.metrics or {}
    name = str(metrics.get("trial", ""))
    return Trial(
        name=name,
        settings=dict(result.config),
        value=metrics.get("value"),
        evaluations=int(metrics.get("evaluations", 0)),
        stopped=result.error is None and int(metrics.get("evaluations", 0)) < order.evaluations,
        folder=str(Path(order.folder) / "trials" / name),
        error=None if result.error is None else str(result.error).strip().splitlines()[-1],
    )


def main(path: str) -> int:
    """Runs the search of the file and prints its result, in a job that the batch started."""
    import ray

    order = SearchOrder(**json.loads(Path(path).read_text()))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    address = os.environ.get("RAY_ADDRESS")
    own = {} if address else {"num_cpus": order.at_once, "_memory": (order.need or 0) * order.at_once or None}
    ray.init(address=address, log_to_driver=False, logging_level="ERROR", include_dashboard=False, **own)
    try:
        found = run_search(order)
    except LowmemError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    finally:
        ray.shutdown()
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
