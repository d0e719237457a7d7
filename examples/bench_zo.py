"""What a zeroth-order step costs: against two plain forwards, against a textbook MeZO, in bandwidth and in memory.

    python examples/bench_zo.py [--quick] [--shape smollm2|opt-1.3b] [--dtype fp32|bf16] [--rounds 5] [--record]

A two-sided step (perturbed forward, perturbed forward, update) alternates with two plain forwards that compute the same
logits by the same code, and with a textbook MeZO step, written below: a Gaussian as large as each weight, added in
place three times and once more for the update. Every ratio is the median over rounds of ratios within a round, in CPU
time of one thread, which other processes disturb least. Weights are random, which changes no time. The last line is
one JSON object; --record writes docs/results/bench_zo_SHAPE.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from bench_perturb import DTYPES, measure
from results import write_result
from torch import nn

from lowmem.config.run import RunConfig
from lowmem.data.batch import Batch
from lowmem.methods.build import build_method
from lowmem.models.loss import ModelLoss
from lowmem.plan.fakes import BatchShape, fake_run
from lowmem.plan.simulate import PlannedLoss
from lowmem.plan.tracker import LiveBytes

SHAPES = ("smollm2", "opt-1.3b", "tiny")
BATCHES = {"smollm2": ((16, 48), (8, 30), (1, 64)), "opt-1.3b": ((8, 64), (1, 64)), "tiny": ((16, 48), (1, 64))}
KINDS = ("rademacher", "gaussian")
BARS = {"rademacher": 1.12, "gaussian": 1.22}
SPEEDUP_BARS = {"smollm2": 1.5, "opt-1.3b": 2.5, "tiny": 1.5}
BANDWIDTH_BARS = {"rademacher": 0.6, "gaussian": 0.3}


def model_shape(name: str) -> Any:
    """A transformers config: SmolLM2-135M, OPT-1.3B, or (for --quick) eight layers of the former's width."""
    import transformers as t

    if name == "opt-1.3b":
        wide = {"hidden_size": 2048, "num_hidden_layers": 24, "ffn_dim": 8192, "num_attention_heads": 32}
        return t.OPTConfig(**wide, word_embed_proj_dim=2048)
    return t.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30 if name == "smollm2" else 4,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )


def run_config(kind: str, dtype: str) -> RunConfig:
    method = {"kind": "zo", "algorithm": "mezo", "direction": kind}
    return RunConfig(model="none", dataset=[{"format": "auto", "path": "none"}], dtype=dtype, method=method)


@dataclass
class TextbookMezo:
    """MeZO as its paper's algorithm 1 is usually written: weights are moved in place, noise is as large as a weight."""

    parameters: list[nn.Parameter]
    loss_fn: Callable[[Batch], Any]
    eps: float = 1e-3

    @torch.no_grad()
    def step(self, batch: Batch, *, lr: float, seed: int) -> float:
        self._shift(seed, self.eps)
        plus = float(self.loss_fn(batch).total)
        self._shift(seed, -2 * self.eps)
        minus = float(self.loss_fn(batch).total)
        self._shift(seed, self.eps)
        projected = (plus - minus) / (2 * self.eps * batch.weight)
        self._shift(seed, -lr * projected)
        return projected

    def _shift(self, seed: int, scale: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters:
            z = torch.normal(0.0, 1.0, parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.data.add_(z, alpha=scale)


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def time_steps(model: Any, size: tuple[int, int], dtype: str, rounds: int) -> dict[str, float]:
    """Ratios of a step to two forwards for both directions, and of a textbook step to ours."""
    loss, batch = ModelLoss(model), BatchShape(*size).batch()
    methods = {kind: build_method(run_config(kind, dtype), model) for kind in KINDS}
    textbook = TextbookMezo([p for p in model.parameters() if p.requires_grad], loss)
    forwards: list[float] = []
    steps: dict[str, list[float]] = {kind: [] for kind in KINDS}
    textbooks: list[float] = []

    @torch.no_grad()
    def two_forwards() -> None:
        loss(batch)
        loss(batch)

    for kind in KINDS:  # the check before the first step, and the first touch of all memory
        methods[kind].rehearse(loss, [BatchShape(1, 4).batch()])
    for step in range(rounds):
        forwards.append(cpu_seconds(two_forwards))
        for kind in KINDS:
            method = methods[kind]
            steps[kind].append(cpu_seconds(lambda m=method, s=step: m.step(loss, [batch], lr=1e-9, step=s)))
        textbooks.append(cpu_seconds(lambda s=step: textbook.step(batch, lr=1e-9, seed=s)))

    def ratio(over: list[float], under: list[float]) -> float:
        return round(statistics.median(a / b for a, b in zip(over, under, strict=True)), 4)

    return {
        **{f"{kind}_step_over_two_forwards": ratio(steps[kind], forwards) for kind in KINDS},
        **{f"{kind}_speedup_over_textbook": ratio(textbooks, steps[kind]) for kind in KINDS},
        "two_forwards_cpu_s": round(statistics.median(forwards), 3),
    }


def measure_memory(shape: Any, size: tuple[int, int], dtype: str) -> dict[str, int]:
    """Tensor bytes of plain inference and of a step on fake tensors, and of the largest hidden matrix."""
    tracker = LiveBytes(vocabulary=shape.vocab_size)
    run = fake_run(run_config("rademacher", dtype), shape, tracker)
    with run.mode:
        loss, batch = PlannedLoss(ModelLoss(run.model)), BatchShape(*size).batch()
        with tracker:
            with tracker.phase("inference"), torch.no_grad():
                loss(batch)
            with tracker.phase("step"):
                run.method.step(loss, [batch], lr=1e-6, step=0)
    model: Any = run.model
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    tables.add(id(model.get_output_embeddings().weight))
    hidden = max(p.nbytes for p in model.parameters() if id(p) not in tables)
    return {"inference": tracker.peaks["inference"], "step": tracker.peaks["step"], "largest_hidden": hidden}


def bench(name: str, dtype: str, rounds: int, *, quick: bool) -> dict[str, Any]:
    """Every number of one shape; the keys of the last line and the tables of the record."""
    from transformers import AutoModelForCausalLM

    shape = model_shape(name)
    # OPT-1.3B in bf16 is what the memory bar speaks of, and fake tensors need no such machine.
    memory = measure_memory(shape, BATCHES[name][0], "bf16")
    bandwidth = measure(2048 if quick else 8192, 5 if quick else 9, torch.device("cpu"), DTYPES[dtype])
    model = AutoModelForCausalLM.from_config(shape, dtype=DTYPES[dtype]).eval()
    model.config.use_cache = False
    timings = {f"{rows}x{length}": time_steps(model, (rows, length), dtype, rounds) for rows, length in BATCHES[name]}
    main = timings["x".join(map(str, BATCHES[name][0]))]
    return {
        "shape": name,
        "dtype": dtype,
        "step_over_two_forwards": main["rademacher_step_over_two_forwards"],
        "step_over_two_forwards_gaussian": main["gaussian_step_over_two_forwards"],
        "speedup_over_textbook_mezo": main["rademacher_speedup_over_textbook"],
        "perturb_bandwidth_fraction": round(bandwidth["perturb_rademacher_over_copy"], 3),
        "perturb_bandwidth_fraction_gaussian": round(bandwidth["perturb_gaussian_over_copy"], 3),
        "update_bandwidth_fraction": round(bandwidth["update_rademacher_over_copy"], 3),
        "update_bandwidth_fraction_gaussian": round(bandwidth["update_gaussian_over_copy"], 3),
        "copy_gb_per_s": round(bandwidth["copy_gb_per_s"], 1),
        "peak_over_inference_plus_module": round(
            memory["step"] / (memory["inference"] + 2 * memory["largest_hidden"]), 4
        ),
        "memory_bytes_bf16": memory,
        "timings": timings,
        "rounds": rounds,
        "load": os.getloadavg()[0],
    }


def verdicts(result: dict[str, Any]) -> list[list[Any]]:
    """Each bar, what was measured, and whether it holds."""
    name = result["shape"]
    rows = [
        ["step / two forwards, Rademacher, at most", BARS["rademacher"], result["step_over_two_forwards"]],
        ["step / two forwards, Gaussian, at most", BARS["gaussian"], result["step_over_two_forwards_gaussian"]],
        ["peak / (inference + 2 hidden matrices), at most", 1.0, result["peak_over_inference_plus_module"]],
        ["speed over textbook MeZO, at least", SPEEDUP_BARS[name], result["speedup_over_textbook_mezo"]],
        ["perturb / copy, Rademacher, at least", BANDWIDTH_BARS["rademacher"], result["perturb_bandwidth_fraction"]],
        [
            "perturb / copy, Gaussian, at least",
            BANDWIDTH_BARS["gaussian"],
            result["perturb_bandwidth_fraction_gaussian"],
        ],
        ["update / copy, Rademacher, at least", BANDWIDTH_BARS["rademacher"], result["update_bandwidth_fraction"]],
        ["update / copy, Gaussian, at least", BANDWIDTH_BARS["gaussian"], result["update_bandwidth_fraction_gaussian"]],
    ]
    return [[*row, "yes" if (row[2] <= row[1]) == row[0].endswith("most") else "NO"] for row in rows]


def record(result: dict[str, Any], command: str) -> None:
    name = result["shape"].replace("-", "_").replace(".", "_")
    sizes = list(result["timings"])
    columns = ["rows x tokens", *result["timings"][sizes[0]]]
    write_result(
        f"bench_zo_{name}",
        title=f"Speed and memory of a zeroth-order step, {result['shape']} shape, {result['dtype']}",
        headline=(
            f"{result['step_over_two_forwards']:.3f} of two forwards, {result['speedup_over_textbook_mezo']:.2f} times "
            f"as fast as a textbook MeZO"
        ),
        command=command,
        keys={key: value for key, value in result.items() if key not in ("timings", "memory_bytes_bf16")},
        tables=[
            {"title": "Bars", "columns": ["bar", "asked", "measured", "holds"], "rows": verdicts(result)},
            {"title": "Timings", "columns": columns, "rows": [[s, *result["timings"][s].values()] for s in sizes]},
        ],
        notes="Random weights of the shape; CPU time of one thread; memory on fake tensors in bf16. This processor "
        "has no bf16 instructions, so times in bf16 were not measured.",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four layers of SmolLM2's width, under a minute")
    parser.add_argument("--shape", choices=SHAPES, default="smollm2")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    name, rounds = ("tiny", 3) if arguments.quick else (arguments.shape, arguments.rounds)
    result = bench(name, arguments.dtype, rounds, quick=arguments.quick)
    for row in verdicts(result):
        print(f"{row[0]:50s} {row[1]:6.2f} {row[2]:8.3f}  {row[3]}")
    for size, timing in result["timings"].items():
        print(size, timing)
    if arguments.record:
        command = f"python examples/bench_zo.py --shape {name} --dtype {arguments.dtype} --rounds {rounds} --record"
        record(result, command)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
