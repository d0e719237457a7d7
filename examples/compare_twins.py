"""Twins pretrained with AdamW and with Muon, finetuned with either and with LoRA: what each forgets at equal learning.

    python examples/pretrain_small.py && python examples/pretrain_small.py --optimizer muon    # once
    python examples/compare_twins.py --tier session      # docs/results/compare_twins.json
    python examples/compare_twins.py --quick             # shows that it runs; writes nothing

`protocols/twins.yaml` fixes the question. Stopped runs go on where they were. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from first_order.grid import sections
from protocol import ROOT, Protocol, open_protocol, verdict

from lowmem.config.run import RunConfig
from lowmem.diagnose.forgetting import read_points
from lowmem.diagnose.pareto import Point, common_levels, forgetting_at
from lowmem.errors import NonFiniteError
from lowmem.jobs.train import train
from lowmem.train.record import read_metrics

DATA = Path("../shared/data")
Points = dict[str, dict[int, list[Point]]]
"""Of one twin: by arm and seed, the points of all rates."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=["quick", "session", "full"], default="session")
    parser.add_argument("--quick", action="store_const", const="quick", dest="tier", help="the same as --tier quick")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder with instructions/ and wikitext2/")
    given = parser.parse_args()
    os.chdir(ROOT)
    torch.set_num_threads(1)
    protocol = open_protocol("twins", given.tier)
    keys, rows = {}, []
    for twin in protocol.settings["twins"]:
        points, base = cells(protocol, given.data, twin)
        found, more = matched(twin, points)
        keys |= found | {f"{twin}_loss_before": base}
        rows += more
    keys |= overall(keys, list(protocol.settings["twins"])) | {"cpu_minutes": round(protocol.cpu_minutes(), 1)}
    columns = ["pretrained with", "finetuned with", "learning", "forgetting, a seed each", "mean"]
    for row in [columns, *rows]:
        print("  ".join(f"{cell:<24}" for cell in row))
    if given.tier != "quick":
        _record(protocol, keys, {"title": "Forgetting at equal learning", "columns": columns, "rows": rows})
    print(json.dumps(keys))


def cells(protocol: Protocol, data: Path, twin: str) -> tuple[Points, float]:
    """Every run of the twin, computed where it is missing, and its loss on old text before any of them."""
    settings, points, base = protocol.settings, Points(), 0.0
    for arm, seed in itertools.product(settings["arms"], settings["seeds"]):
        for rate in settings["rates"][arm]:
            key = {"twin": twin, "arm": arm, "rate": rate, "seed": seed}
            outcome = protocol.cell(key, lambda key=key: _run(protocol, data, **key))
            base = outcome["base"] or base
            points.setdefault(arm, {}).setdefault(seed, []).extend(Point(**point) for point in outcome["points"])
    return points, base


def matched(twin: str, points: Points) -> tuple[dict[str, Any], list[list[str]]]:
    """Forgetting of every arm at the most that all arms and seeds learn, and which full optimizer forgets less."""
    levels = common_levels([found for seeds in points.values() for found in seeds.values()], 1)
    if not levels:
        return {f"{twin}_own_forgets_less": None}, [[twin, "-", "an arm learned nothing", "-", "-"]]
    values = {arm: [_at(levels[0], found) for found in seeds.values()] for arm, seeds in points.items()}
    means = {arm: sum(found) / len(found) for arm, found in values.items()}
    other = next(arm for arm in ("adamw", "muon") if arm != twin)
    keys: dict[str, Any] = {f"{twin}_{arm}_forgetting": round(mean, 4) for arm, mean in means.items()}
    keys[f"{twin}_own_forgets_less"] = means[twin] < means[other]
    keys[f"{twin}_verdict"] = verdict(values[twin], values[other])
    rows = [
        [twin, arm, f"{levels[0]:.3f}", " ".join(f"{v:.4f}" for v in found), f"{means[arm]:.4f}"]
        for arm, found in values.items()
    ]
    return keys, rows


def overall(keys: dict[str, Any], twins: list[str]) -> dict[str, Any]:
    """On how many twins the diagonal wins, decided or not, and how far apart the twins were at the start."""
    before = [keys[f"{twin}_loss_before"] for twin in twins]
    return {
        "diagonal_wins": sum(bool(keys[f"{twin}_own_forgets_less"]) for twin in twins),
        "diagonal_decided": sum(keys.get(f"{twin}_verdict") == "better" for twin in twins),
        "twins": len(twins),
        "gap_before": round(max(before) - min(before), 4),
    }


def _at(level: float, points: list[Point]) -> float:
    found = forgetting_at(level, points)
    assert found is not None, "every seed reaches the common level"
    return found


def _run(protocol: Protocol, data: Path, *, twin: str, arm: str, rate: float, seed: int) -> dict[str, Any]:
    """One training run in a folder that is thrown away; a run that breaks down has no points."""
    with tempfile.TemporaryDirectory() as folder:
        config = _config(protocol, data, twin, arm, rate, seed, Path(folder) / "run")
        try:
            report = train(config, sink=lambda _: None)
        except NonFiniteError:
            return {"points": [], "base": None}
        points = read_points(read_metrics(Path(folder) / "run" / "metrics.jsonl"), metric="loss", maximize=False)
    _, old = report.before
    print(twin, arm, rate, seed, f"{points[-1].learning:.4f} {points[-1].forgetting:.4f}", flush=True)
    return {"points": [asdict(point) for point in points], "base": report.before[old]["loss"]}


def _config(protocol: Protocol, data: Path, twin: str, arm: str, rate: float, seed: int, output: Path) -> RunConfig:
    settings = protocol.settings
    new, held_out = sections(settings["tasks"]["new"], data, protocol.folder)
    if settings["tasks"]["old"] == "procedural-old":
        old: dict[str, Any] = {"format": "procedural", "family": "add", "size": 50, "data_seed": 1}
    else:
        _, old = sections(settings["tasks"]["old"], data, protocol.folder)
    return RunConfig.model_validate(
        {
            "model": _model(settings["twins"][twin]),
            "dtype": "fp32",
            "device": "cpu",
            "dataset": [new],
            "eval_dataset": [held_out, old],
            "eval_limit": settings["eval_rows"],
            "eval_steps": max(1, settings["steps"] // 2),
            "eval_generate": False,
            "max_length": settings["max_length"],
            "per_device_train_batch_size": settings["rows"],
            "max_steps": settings["steps"],
            "learning_rate": rate,
            "lr_scheduler_type": "linear",
            "warmup_ratio": 0.05,
            "seed": seed,
            "output_dir": str(output),
        }
        | settings["arms"][arm]
    )


def _model(name: str) -> str:
    if not name.startswith("small-lm-"):
        return name
    from pretrain_small import small_lm

    return str(small_lm(name.removeprefix("small-lm-")))


def _record(protocol: Protocol, keys: dict[str, Any], table: dict[str, Any]) -> None:
    from results import write_result

    write_result(
        "compare_twins",
        title="Twins pretrained with AdamW and with Muon: which finetuning forgets least",
        headline=(
            f"at equal learning the optimizer of pretraining forgets less for {keys['diagonal_wins']} of "
            f"{keys['twins']} twins ({keys['diagonal_decided']} beyond the spread of seeds); their losses differed by "
            f"{keys['gap_before']:.3f} before"
        ),
        command=f"python examples/compare_twins.py --tier {protocol.tier}",
        keys=keys,
        tables=[table],
        notes=(
            f"{protocol.question.strip()} Tier {protocol.tier} of examples/protocols/twins.yaml, fixed in commit "
            f"{(protocol.commit or '')[:10]}: {protocol.settings['steps']} steps, seeds {protocol.settings['seeds']}."
        ),
    )


if __name__ == "__main__":
    main()
