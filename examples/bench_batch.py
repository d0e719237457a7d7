"""What a batch costs and whether it keeps its promises: overhead per job, the budget, and what kills do.

    python examples/bench_batch.py [--quick] [--no-ray]

- overhead: trivial jobs (`true`), one at a time, seconds of wall time per job from the start of the first to the end of
  the last; the same through a Ray cluster on this machine.
- packing: jobs that hold 1, 1, 2 and 3 GiB (quick: a sixteenth) under a budget of 4 GiB, memory of all their processes
  added up every 20 ms.
- kills: twelve jobs with dependencies, two of them failing, the runner killed with SIGKILL at five random moments and
  started again, for each seed; compared with a run that nobody disturbed.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from examples.results import write_result
from lowmem.batch.attempt import read_watcher
from lowmem.batch.ledger import Entry
from lowmem.batch.processes import resident_bytes
from tests.batch.batches import GIB, run, write
from tests.batch.test_undisturbed import JOBS, TWELVE, killed_runs, outcome

NOTES = (
    "The budget was watched every 20 ms over all processes of the jobs, their watchers (10 MiB each) apart. Kills: "
    "five for each seed; those that came after the batch had ended are not counted."
)
HOLD = "import time; held = b'x' * {nbytes}; time.sleep({seconds})"


def overhead(folder: Path, jobs: int, *, ray: bool) -> float:
    """Wall seconds per trivial job, one at a time."""
    path = write(
        folder, f"jobs: {{a: {{command: 'true', matrix: {{i: {list(range(jobs))}}}, env: {{I: '${{matrix.i}}'}}}}}}"
    )
    if not ray:
        done = run(path, max_parallel=1)
    else:
        from lowmem.batch.ray_runner import RayEngine

        with RayEngine(None, gpu_bytes=GIB) as engine:
            done = run(path, max_parallel=1, engine=engine)
    assert all(entry.state == "done" for entry in done.values())
    return (max(e.ended or 0 for e in done.values()) - min(e.started or 0 for e in done.values())) / jobs


def packing(folder: Path, unit: int) -> dict[str, float]:
    """Bytes over the budget at the worst moment, and wall time over the sum of the jobs' times."""
    sizes = {"a": 1, "b": 1, "c": 2, "d": 3}
    spare = 16 * 2**20  # the interpreter's own
    lines = []
    for name, n in sizes.items():
        program = HOLD.format(nbytes=n * unit - spare, seconds=2)
        lines.append(f'  {name}: {{memory: {n * unit}B, command: [{sys.executable}, -c, "{program}"]}}')
    path = write(folder, "\n".join([f"memory_budget: {4 * unit}B", "max_parallel: 4", "jobs:", *lines]))
    worst = [0]

    def look(entries: Sequence[Entry]) -> None:
        running = [e for e in entries if e.state == "running"]
        watchers = [read_watcher(folder / f"jobs.batch/attempts/{e.name}/{e.attempts}") for e in running]
        worst[0] = max(worst[0], sum(resident_bytes(watcher.pid) for watcher in watchers if watcher))

    done = run(path, watch=look, watch_seconds=0.02)
    wall = max(e.ended or 0 for e in done.values()) - min(e.started or 0 for e in done.values())
    return {
        "budget_bytes": 4 * unit,
        "worst_bytes": worst[0],
        "budget_exceeded": int(worst[0] > 4 * unit),
        "wall_over_in_turn": wall / sum(e.seconds for e in done.values()),
    }


def kills(folder: Path, seeds: Sequence[int]) -> dict[str, int]:
    """Jobs lost, jobs that ran to their end twice, results that differ, over all seeds."""
    (folder / "undisturbed").mkdir()
    os.chdir(folder / "undisturbed")
    wanted = outcome(run(write(folder / "undisturbed", TWELVE)))
    found = Counter[str]()
    for seed in seeds:
        own = folder / f"seed-{seed}"
        own.mkdir()
        path, draw = write(own, TWELVE), random.Random(seed)
        os.chdir(ROOT)
        found["kills"] += killed_runs(path, moments=[draw.uniform(0.4, 1.2) for _ in range(5)])
        os.chdir(own)
        got = outcome(run(path))
        ended = Counter(line for line in Path("journal").read_text().splitlines() if line.startswith("end"))
        found["lost"] += JOBS - 2 - len(ended)
        found["run_twice"] += sum(count - 1 for count in ended.values())
        found["different"] += sum(got[name] != wanted[name] for name in wanted)
    os.chdir(ROOT)
    return {key: found[key] for key in ("kills", "lost", "run_twice", "different")}


ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller jobs, nothing written")
    parser.add_argument("--no-ray", action="store_true", help="leave out Ray")
    given = parser.parse_args()
    jobs, unit, seeds = (20, GIB // 16, (1,)) if given.quick else (200, GIB, (1, 2, 3))
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for name in ("local", "ray", "packing", "kills"):
            (folder / name).mkdir()
        os.chdir(folder / "local")
        found["overhead_local_s"] = overhead(folder / "local", jobs, ray=False)
        os.chdir(folder / "ray")
        found["overhead_ray_s"] = None if given.no_ray else overhead(folder / "ray", jobs, ray=True)
        os.chdir(folder / "packing")
        found |= packing(folder / "packing", unit)
        os.chdir(ROOT)
        found |= kills(folder / "kills", seeds)
    found["trivial_jobs"] = jobs
    for key, value in found.items():
        print(f"{key:>20}  {value}")
    if not given.quick:
        write_result(
            "bench_batch",
            title="Batches: overhead, packing, kills",
            headline=(
                f"{found['overhead_local_s']:.3f} s per trivial job, {found['overhead_ray_s'] or 0:.3f} s through Ray; "
                f"budget exceeded: {found['budget_exceeded']}; lost: {found['lost']}, run twice: {found['run_twice']}"
            ),
            command="python examples/bench_batch.py",
            keys=found,
            notes=NOTES,
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
