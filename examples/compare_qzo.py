"""What zeroth order over the scales of a 2-bit model recovers, as `protocols/qzo.yaml` fixes it.

    python examples/pretrain_small.py                # once: the model
    python examples/compare_qzo.py --tier session    # docs/results/compare_qzo.json
    python examples/compare_qzo.py --tier quick      # shows that it runs; writes nothing

small-lm is coded block by block in the project's own format, its linear layers become `QuantLinear`, and a run of
`method: {kind: zo, train: scales}` trains on the text that the model was pretrained on. A step is stopped by CPU time,
so more cores or a slower machine change how many steps a cell makes: the number of steps is in the table.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from typing import Any

import torch
from pretrain_small import small_lm
from protocol import ROOT, Protocol, mean_std, open_protocol
from torch import Tensor
from zero_order.runs import judge
from zero_order.tasks import Start, open_start

from lowmem.config.run import RunConfig
from lowmem.data.train_batches import TrainBatches
from lowmem.methods.build import build_method
from lowmem.models.embedded import cache_folder
from lowmem.models.load import pad_id
from lowmem.models.loss import ModelLoss
from lowmem.models.scales import scaled_layers
from lowmem.quant.linear import QuantLinear
from lowmem.quant.model import fingerprint, quantize_blocks
from lowmem.quant.quantize import QuantizedWeight, QuantizeOptions
from lowmem.quant.store import WeightStore

GOAL = 0.30


@dataclass(frozen=True)
class Opened:
    """Model, rows and loss of one run."""

    start: Start
    batches: TrainBatches
    loss: ModelLoss

    def judged(self) -> float:
        return judge(self.start, self.loss)["loss"]


def run_config(settings: dict[str, Any], seed: int) -> RunConfig:
    text = cache_folder() / "small-lm-work"
    return RunConfig.model_validate(
        {
            "model": str(small_lm()),
            "dtype": "fp32",
            "dataset": [{"format": "text", "path": str(text / "corpus.jsonl"), "limit": settings["train_rows"]}],
            "eval_dataset": [{"format": "text", "path": str(text / "held_out.jsonl"), "limit": settings["eval_rows"]}],
            "max_length": settings["max_length"],
            "method": {"kind": "zo", "train": "scales", "algorithm": settings["algorithm"]},
            "per_device_train_batch_size": settings["batch_size"],
            "loss_chunk_tokens": 2048,
            "seed": seed,
        }
    )


def opened(config: RunConfig) -> Opened:
    """Fresh full-precision weights."""
    start = open_start(config)
    batches = TrainBatches(
        [start.train],
        batch_size=config.per_device_train_batch_size,
        seed=config.seed,
        pad_id=pad_id(start.loaded.tokenizer),
    )
    return Opened(start, batches, ModelLoss(start.loaded.model, chunk_tokens=config.loss_chunk_tokens))


def quantize(run: Opened, settings: dict[str, Any]) -> None:
    """Every linear layer of the blocks is packed; the codes are kept beside the model for the next seed."""
    model = run.start.loaded.model
    calibration = TrainBatches([run.start.train], batch_size=8, seed=0, pad_id=pad_id(run.start.loaded.tokenizer))
    texts: list[dict[str, Tensor]] = []
    for step in range(settings["calibration_batches"]):
        batch = calibration.micro_batches(step)[0]
        texts.append({"input_ids": batch.input_ids, "attention_mask": torch.ones_like(batch.input_ids)})
    options = QuantizeOptions(kind=settings["kind"], candidates=tuple(settings["candidates"]))
    mark = fingerprint(model, texts, lambda name: options)
    store = WeightStore(cache_folder() / "compare-qzo" / mark[:16], mark)
    weights: dict[str, QuantizedWeight] = {}
    quantize_blocks(model, texts, lambda name: options, store, on_weight=weights.__setitem__)
    for name, weight in weights.items():
        parent, _, attribute = name.rpartition(".")
        packed = QuantLinear(weight.packed, weight.right, weight.left)
        setattr(model.get_submodule(parent), attribute, packed)


def cell(settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Losses before quantization, after it and after training; raises when a code changed."""
    config = run_config(settings, seed)
    run = opened(config)
    full = run.judged()
    quantize(run, settings)
    coded = run.judged()
    model = run.start.loaded.model
    codes = [tensor.clone() for layer in scaled_layers(model).values() for tensor in layer.codes]
    method = build_method(config, model)
    begin, step = time.process_time(), 0
    while time.process_time() - begin < settings["cpu_seconds"]:
        method.step(run.loss, run.batches.micro_batches(step), lr=config.peak_learning_rate, step=step)
        step += 1
    now = [tensor for layer in scaled_layers(model).values() for tensor in layer.codes]
    if not all(torch.equal(a, b) for a, b in zip(codes, now, strict=True)):
        raise SystemExit("a code changed: this is no QZO")
    trained = run.judged()
    scales = sum(tensor.numel() for tensor in method.trainable.values())
    recovered = (coded - trained) / (coded - full)
    found = {"full": full, "quantized": coded, "trained": trained, "recovered": recovered, "steps": step}
    print(f"seed {seed}: {found}", flush=True)
    return found | {"scales": scales}


def record(protocol: Protocol, cells: list[dict[str, Any]], keys: dict[str, Any]) -> None:
    from results import write_result

    columns = ["seed", "full precision", "quantized", "trained", "recovered", "steps"]
    names = ("full", "quantized", "trained")
    rows = [
        [seed, *(f"{c[name]:.4f}" for name in names), f"{c['recovered']:.3f}", c["steps"]]
        for seed, c in zip(protocol.settings["seeds"], cells, strict=True)
    ]
    write_result(
        f"compare_qzo{'' if protocol.tier == 'session' else '_' + protocol.tier}",
        title="QZO: training the scales of a 2-bit model",
        headline=f"recovers {keys['recovered'][0]:.0%} of what 2-bit codes cost (goal: {GOAL:.0%})",
        command=f"python examples/compare_qzo.py --tier {protocol.tier}",
        keys=keys | {"cpu_minutes": round(protocol.cpu_minutes(), 1), "protocol_commit": protocol.commit},
        tables=[{"title": "Held-out loss per token", "columns": columns, "rows": rows}],
        notes=protocol.question.strip(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=["quick", "session", "full"], default="session")
    given = parser.parse_args()
    os.chdir(ROOT)
    torch.set_num_threads(1)
    protocol = open_protocol("qzo", given.tier)
    settings = protocol.settings
    cells = [protocol.cell({"seed": seed}, lambda seed=seed: cell(settings, seed)) for seed in settings["seeds"]]
    recovered = mean_std([c["recovered"] for c in cells])
    keys: dict[str, Any] = {
        "recovered": [round(value, 4) for value in recovered],
        "goal_reached": recovered[0] >= GOAL,
        "scales": cells[0]["scales"],
        "codes_changed": 0,
    }
    if given.tier != "quick":
        record(protocol, cells, keys)
    print(json.dumps(keys))


if __name__ == "__main__":
    main()
