"""LoRSum against LoRA-AdamW and LoRA-Muon over learning rates on real tasks, as `protocols/first_order.yaml` fixes it.

    python examples/compare_first_order.py --tier session    # docs/results/compare_first_order.json
    python examples/compare_first_order.py --quick           # shows that it runs; writes nothing

Stopped runs go on where they were: every cell (task, method, rate, seed) is kept once it is finished. The last line is
one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

from first_order.grid import Curve, base_losses, curves, decades, wins
from protocol import ROOT, Protocol, open_protocol

DATA = Path("../shared/data")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=["quick", "session", "full"], default="session")
    parser.add_argument("--quick", action="store_const", const="quick", dest="tier", help="the same as --tier quick")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder with instructions/, sst2/ and wikitext2/")
    given = parser.parse_args()
    os.chdir(ROOT)
    protocol = open_protocol("first_order", given.tier)
    found, base = curves(protocol, given.data), base_losses(protocol, given.data)
    keys, table = summary(protocol, found, base)
    for row in [table["columns"], *table["rows"]]:
        print("".join(f"{cell!s:>18}" for cell in row))
    if given.tier != "quick":
        _record(protocol, keys, [table, grid_table(found)])
    print(json.dumps(keys))


def summary(protocol: Protocol, found: list[Curve], base: dict[str, float]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys of the result and its main table, a row per task and method."""
    rows = []
    for curve in found:
        rate, (mean, std) = curve.best
        share = decades(curve, curve.bound_of_improvement(base[curve.task], 0.8))
        within = decades(curve, curve.best_mean * 1.05)
        rows.append(
            [
                curve.task,
                curve.method,
                f"{base[curve.task]:.4f}",
                f"{rate:g}",
                f"{mean:.4f} ± {std:.4f}",
                f"{within:.1f}",
                f"{share:.1f}",
            ]
        )
    keys: dict[str, Any] = {}
    for method, title in (("lorsum", "lorsum"), ("lora", "adamw"), ("lora_muon", "lora_muon")):
        mine = [curve for curve in found if curve.method == method]
        keys[f"{title}_lr_decades"] = min(decades(c, c.best_mean * 1.05) for c in mine)
        keys[f"{title}_lr_decades_of_improvement"] = min(
            decades(c, c.bound_of_improvement(base[c.task], 0.8)) for c in mine
        )
    keys["lorsum_wins"], keys["verdicts_over_adamw"] = wins(found, "lorsum", "lora")
    keys["lorsum_wins_over_lora_muon"], keys["verdicts_over_lora_muon"] = wins(found, "lorsum", "lora_muon")
    keys["tasks_total"] = len(base)
    keys["cpu_minutes"] = round(protocol.cpu_minutes(), 1)
    columns = ["task", "method", "base", "best rate", "loss at it", "decades 5%", "decades 80%"]
    return keys, {
        "title": "Held-out loss at each method's best rate, and how wide it is",
        "columns": columns,
        "rows": rows,
    }


def grid_table(found: list[Curve]) -> dict[str, Any]:
    """Every cell of the grid, a row per task, method and rate."""
    rows = [
        [curve.task, curve.method, f"{rate:g}", *(_number(value) for value in values)]
        for curve in found
        for rate, values in sorted(curve.losses.items())
    ]
    seeds = len(next(iter(found[0].losses.values())))
    columns = ["task", "method", "rate", *(f"seed {index}" for index in range(seeds))]
    return {"title": "All runs: held-out loss", "columns": columns, "rows": rows}


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "diverged"


def _record(protocol: Protocol, keys: dict[str, Any], tables: list[dict[str, Any]]) -> None:
    from results import write_result

    write_result(
        "compare_first_order",
        title="LoRSum against LoRA-AdamW and LoRA-Muon over learning rates",
        headline=(
            f"loss within 5 % of its best over {keys['lorsum_lr_decades']:.1f} decades of learning rate (worst task) "
            f"against {keys['adamw_lr_decades']:.1f} for AdamW; at the best rates lower on {keys['lorsum_wins']} of "
            f"{keys['tasks_total']} tasks"
        ),
        command=f"python examples/compare_first_order.py --tier {protocol.tier}",
        keys=keys,
        tables=tables,
        notes=(
            f"{protocol.question.strip()} Tier {protocol.tier} of examples/protocols/first_order.yaml, fixed in commit "
            f"{(protocol.commit or '')[:10]}: {protocol.settings['model']}, {protocol.settings['steps']} steps, seeds "
            f"{protocol.settings['seeds']}. LoRSum's damping makes rates above its inverse equivalent, which is how it "
            "keeps its loss there; AdamW was not given such a cap."
        ),
    )


if __name__ == "__main__":
    main()
