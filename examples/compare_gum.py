"""GUM against GaLore at equal memory on written instructions, as `protocols/gum.yaml` fixes it.

    python examples/compare_gum.py --tier session    # docs/results/compare_gum.json
    python examples/compare_gum.py --quick           # shows that it runs; writes nothing

Stopped runs go on where they were. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from compare_first_order import DATA, grid_table
from first_order.grid import Curve, base_losses, curves
from protocol import ROOT, Protocol, open_protocol, verdict

RIVALS = ("galore", "galore_scale1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=["quick", "session", "full"], default="session")
    parser.add_argument("--quick", action="store_const", const="quick", dest="tier", help="the same as --tier quick")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder with instructions/")
    given = parser.parse_args()
    os.chdir(ROOT)
    protocol = open_protocol("gum", given.tier)
    found, base = curves(protocol, given.data), base_losses(protocol, given.data)
    keys, table = summary(protocol, found, base)
    for row in [table["columns"], *table["rows"]]:
        print("".join(f"{cell!s:>18}" for cell in row))
    if given.tier != "quick":
        _record(protocol, keys, [table, grid_table(found)])
    print(json.dumps(keys))


def summary(protocol: Protocol, found: list[Curve], base: dict[str, float]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys of the result, and a table with a row per method."""
    rows = []
    for curve in found:
        rate, (mean, std) = curve.best
        rows.append([curve.method, f"{base[curve.task]:.4f}", f"{rate:g}", f"{mean:.4f} ± {std:.4f}"])
    best = {curve.method: curve for curve in found}
    rival = min((best[name] for name in RIVALS), key=lambda curve: curve.best_mean)
    gum = best["gum"]
    keys: dict[str, Any] = {f"{name}_loss": round(curve.best_mean, 4) for name, curve in best.items()}
    keys["gum_wins"] = int(gum.best_mean <= rival.best_mean)
    keys["verdict"] = str(verdict(gum.losses[gum.best[0]], rival.losses[rival.best[0]]))
    keys["rival"] = rival.method
    keys["cpu_minutes"] = round(protocol.cpu_minutes(), 1)
    columns = ["method", "base", "best rate", "loss at it"]
    return keys, {"title": "Held-out loss at each method's best rate", "columns": columns, "rows": rows}


def _record(protocol: Protocol, keys: dict[str, Any], tables: list[dict[str, Any]]) -> None:
    from results import write_result

    write_result(
        "compare_gum",
        title="GUM against GaLore at equal memory",
        headline=(
            f"Held-out loss of GUM {keys['gum_loss']:.4f}, of the better GaLore ({keys['rival']}) "
            f"{keys[keys['rival'] + '_loss']:.4f}, of full AdamW {keys['full_loss']:.4f}; over the seeds GUM is "
            f"{keys['verdict']}"
        ),
        command=f"python examples/compare_gum.py --tier {protocol.tier}",
        keys=keys,
        tables=tables,
        notes=(
            f"{protocol.question.strip()} Tier {protocol.tier} of examples/protocols/gum.yaml, fixed in commit "
            f"{(protocol.commit or '')[:10]}: {protocol.settings['model']}, {protocol.settings['steps']} steps, seeds "
            f"{protocol.settings['seeds']}. One small model and one corpus."
        ),
    )


if __name__ == "__main__":
    main()
