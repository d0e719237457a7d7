"""Speed and memory of first-order methods against the usual implementations, each pair in one process, in turn.

    python examples/bench_first_order.py            # docs/results/bench_first_order.json
    python examples/bench_first_order.py --quick    # the same keys from a smaller model, under a minute; writes nothing

A ratio is the median over rounds of ours / theirs; bytes are those of live tensors, counted alike for both. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import torch
from first_order import lora, projected
from first_order.setting import Comparison, Setting

COMPARISONS: tuple[Callable[[Setting], Comparison], ...] = (lora.compare, projected.compare)
QUICK = Setting(layers=2, vocabulary=2000, rows=2, rounds=5)
FULL = Setting()
COLUMNS = ["what", "ours", "theirs", "ratio"]
NOTES = (
    "One thread, CPU time of the process, alternating rounds after two warm-ups. `plain peft` is peft's model with "
    "its own loss, clipping and torch.optim.AdamW; ours computes the loss in chunks of the tokens. "
    f"galore-torch: rank {projected.RANK}, per-layer hooks, no clipping; its SVDs amortised over "
    f"{projected.PERIOD} steps; it is given the same chunked loss, and in the rows of `its script` the model's own. "
    "GUM draws one layer of four, whose msign costs the same at any batch size."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller model and fewer rounds; nothing is written")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    setting = QUICK if quick else FULL
    keys: dict[str, float] = {}
    rows: list[list[str]] = []
    for compare in COMPARISONS:
        found = compare(setting)
        keys |= found.keys
        rows += found.rows
    _print(rows)
    if not quick:
        _record(setting, keys, rows)
    print(json.dumps({key: round(value, 4) for key, value in keys.items()}))


def _print(rows: list[list[str]]) -> None:
    for row in [COLUMNS, *rows]:
        print(f"{row[0]:<44}" + "".join(f"{cell:>12}" for cell in row[1:]))


def _record(setting: Setting, keys: dict[str, float], rows: list[list[str]]) -> None:
    from results import write_result

    write_result(
        "bench_first_order",
        title="First-order methods: time and memory of a step",
        headline=(
            f"LoRA's step takes {keys['lora_step_ratio']:.2f} of plain peft's time and {keys['lora_peak_ratio']:.2f} "
            f"of its bytes; LoRSum {keys['lorsum_step_ratio']:.2f} of LoRA's time and {keys['lorsum_state_ratio']:.2f} "
            "of its optimizer state"
        ),
        command="python examples/bench_first_order.py",
        keys=keys,
        tables=[{"title": f"One step of {setting}", "columns": COLUMNS, "rows": rows}],
        notes=NOTES,
    )


if __name__ == "__main__":
    main()
