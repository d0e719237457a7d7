"""How close the memory planner comes: predicted against measured bytes, on real runs with random weights.

    python examples/bench_plan_accuracy.py            # all cases, docs/results/bench_plan_accuracy.json
    python examples/bench_plan_accuracy.py --quick    # the same keys from a few small cases, under a minute
    python examples/bench_plan_accuracy.py --tables   # docs/results/plan_tables.json: OPT and Llama on real cards

Every case runs in a child process of its own: the step, the evaluation and the save are those of a training run. Two
measures are compared with the plan: the bytes of all live tensors, and the resident memory of the child process.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MIB, GIB = 2**20, 2**30
TOKENS = 64
METHODS: dict[str, dict[str, Any]] = {
    "full adamw": {"method": {"kind": "full"}},
    "full sgd": {"method": {"kind": "full"}, "optimizer": {"kind": "sgd"}},
    "full in backward": {"method": {"kind": "full", "update": "in_backward"}},
    "galore": {"method": {"kind": "galore", "rank": 64}},
    "gum": {"method": {"kind": "gum", "rank": 64, "gamma": 2}},
    "gum per layer": {"method": {"kind": "gum", "rank": 64, "gamma": 2, "clipping": "per_layer"}},
    "lora": {"method": {"kind": "lora"}},
    "lora on nf4": {"method": {"kind": "lora"}, "quantization": {"kind": "nf4"}},
    "lora on int8": {"method": {"kind": "lora"}, "quantization": {"kind": "int8"}},
    "lorsum": {"method": {"kind": "lorsum"}},
    "zo mezo": {"method": {"kind": "zo", "algorithm": "mezo"}},
    "zo adanaged": {"method": {"kind": "zo"}},
}
"""On every shape; the others that are registered (`registered`) run on the smallest."""
BF16 = (("full adamw", 1), ("lora", 4), ("zo mezo", 4))
"""Besides, in bf16 on the smallest shape: without bf16 units a CPU takes minutes for each."""
SETTINGS = ((1, False), (4, True))
"""Micro-batch and checkpointing: both on the smallest shape, in turn on the others."""
SHAPES = ("smollm2-135m", "opt-125m", "qwen3-small")
SMALLEST = SHAPES[-1]


def registered() -> dict[str, dict[str, Any]]:
    """Every method, optimizer and zeroth-order algorithm that a config can name and `METHODS` does not, by name."""
    from typing import get_args

    from lowmem.config.method import AutoMethod, Method, ZoAlgorithm
    from lowmem.config.optimizer import Optimizer

    def kinds(union: Any) -> list[Any]:
        return [section for section in get_args(get_args(union)[0]) if section is not AutoMethod]

    found: dict[str, dict[str, Any]] = {}
    for section in kinds(Method):
        found[section().kind] = {"method": {"kind": section().kind}}
    for algorithm in get_args(ZoAlgorithm):
        found[f"zo {algorithm}"] = {"method": {"kind": "zo", "algorithm": algorithm}}
    for section in kinds(Optimizer):
        kind = section.model_fields["kind"].default
        found[f"full {kind}"] = {"method": {"kind": "full"}, "optimizer": {"kind": kind}, "max_steps": 100}
    return {name: keys for name, keys in found.items() if name not in ("full", "zo", *METHODS)}


@dataclass(frozen=True)
class Case:
    shape: str
    method: str
    examples: int
    checkpointing: bool
    tokens: int = TOKENS
    dtype: str = "fp32"

    @property
    def title(self) -> str:
        ckpt = ", ckpt" if self.checkpointing else ""
        return f"{self.shape}, {self.method}, {self.examples}x{self.tokens}{ckpt}, {self.dtype}"


def shape_of(name: str) -> Any:
    """A published shape, or the small Qwen3 that this benchmark defines."""
    from transformers import Qwen3Config

    from lowmem.models.shapes import known_shape

    if name != "qwen3-small":
        return known_shape(name)
    return Qwen3Config(
        hidden_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        intermediate_size=1536,
        vocab_size=32000,
        tie_word_embeddings=True,
    )


def config_of(case: Case, model: str) -> Any:
    from lowmem.config.run import RunConfig

    keys = (METHODS | registered())[case.method] | {"gradient_checkpointing": case.checkpointing, "dtype": case.dtype}
    if case.method == "zo adanaged" and case.examples == 1:  # one example shows no noise
        keys["method"] = keys["method"] | {"step_rule": "parameter_free"}
    return RunConfig(**{"model": model, "dataset": [{"format": "text", "path": "none"}], **keys})


def work_of(case: Case) -> Any:
    from lowmem.plan.fakes import BatchShape
    from lowmem.plan.simulate import Work

    batch = BatchShape(case.examples, case.tokens)
    return Work(batch, eval_batch=batch)


def trains_adapter(case: Case) -> bool:
    from lowmem.config.method import AdapterMethod

    return isinstance(config_of(case, "none").method, AdapterMethod)


def measure(case: Case, folder: str) -> dict[str, Any]:
    """The case for real, in this process: tensor bytes by phase, and resident memory at the peak."""
    import torch

    from lowmem.methods.build import build_method
    from lowmem.models.checkpointing import set_gradient_checkpointing
    from lowmem.models.load import load_model
    from lowmem.models.loss import ModelLoss
    from lowmem.models.source import ModelSource
    from lowmem.plan.simulate import evaluate_batch, measure_run
    from lowmem.plan.tracker import LiveBytes
    from lowmem.train.meter import MemoryMeter

    torch.set_num_threads(1)
    config, meter = config_of(case, folder), MemoryMeter(torch.device("cpu"))
    model = load_model(ModelSource.from_config(config), device=torch.device("cpu")).model
    tracker = LiveBytes(vocabulary=model.config.vocab_size)
    tracker.track_module(model)
    meter.reset()
    with tracker, tracker.phase("attach"):
        method = build_method(config, model)
    set_gradient_checkpointing(model, config.gradient_checkpointing)
    with tracker:
        loss, batch = ModelLoss(model, chunk_tokens=config.loss_chunk_tokens), work_of(case).batch.batch()
        measure_run(method, model, loss, [batch], tracker=tracker, evaluate=lambda: evaluate_batch(loss, batch))
    phases = {name: nbytes for name, nbytes in tracker.peaks.items() if name not in ("outside", "between")}
    return {"phases": phases, "rss": meter.peak()}


def measured_in_child(case: Case, folder: Path) -> dict[str, Any]:
    """What `measure` finds in a process of its own, so that nothing of another case is resident."""
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case)), "--folder", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["MALLOC_MMAP_THRESHOLD_"] = str(128 * 1024)  # freed blocks go back to the system: see NOTES
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{case.title}: the child failed\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(case: Case, real: dict[str, Any]) -> dict[str, Any]:
    """Predicted and measured bytes of one case, by phase and at the peak, and both relative errors."""
    from lowmem.plan.devices import CPU
    from lowmem.plan.extrapolate import predict

    predicted = predict(config_of(case, "none"), shape_of(case.shape), work_of(case))
    peak = max(real["phases"].values())
    phases = {name: [predicted.phases[name].nbytes, real["phases"][name]] for name in real["phases"]}
    expected_rss = predicted.peak.nbytes + CPU.base + CPU.workspace + (CPU.adapters if trains_adapter(case) else 0)
    return {
        "case": case.title,
        "predicted": predicted.peak.nbytes,
        "measured": peak,
        "error": abs(predicted.peak.nbytes - peak) / peak,
        "phase": predicted.peak_phase,
        "phases": phases,
        "expected_rss": expected_rss,
        "rss": real["rss"],
        "rss_error": abs(expected_rss - real["rss"]) / real["rss"],
    }


@contextmanager
def random_models(names: Iterable[str]) -> Iterator[dict[str, Path]]:
    """Folders with randomly initialised models; gone afterwards."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from lowmem.models.quiet import quiet_transformers
    from lowmem.models.shapes import random_model

    with quiet_transformers(), tempfile.TemporaryDirectory() as folder:
        paths = {}
        for name in names:
            paths[name] = Path(folder) / name
            random_model(shape_of(name)).save_pretrained(paths[name])
            words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
            PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(paths[name])
        yield paths


def seconds_per_plan_7b() -> float:
    """Seconds for the whole table of a 7B model, nothing cached."""
    began = time.monotonic()
    plan_of("llama-2-7b", "cuda:24GiB", rows=4, checkpointing=None)
    return time.monotonic() - began


def plan_of(
    model: str,
    device: str,
    *,
    rows: int,
    checkpointing: bool | None,
    tokens: int = 512,
    task: bool = False,
    only: tuple[str, ...] = (),
    chunk: int = 256,
    method: dict[str, Any] | None = None,
) -> Any:
    """The plan of `model`: of `method` alone, or of every method, or of those in `only`."""
    from lowmem.config.run import RunConfig
    from lowmem.plan.devices import parse_device
    from lowmem.plan.plan import plan_run

    data = {"format": "task", "task": "sst2", "path": "none"} if task else {"format": "auto", "path": "none.jsonl"}
    allowed = {"allow": list(only)} if only else {"allow_quantization": ["int8", "nf4"]}
    keys: dict[str, Any] = {"per_device_train_batch_size": rows, "max_length": tokens}
    keys["loss_chunk_tokens"] = chunk
    if checkpointing is not None:
        keys["gradient_checkpointing"] = checkpointing
    config = RunConfig(**{"model": model, "dataset": [data], "method": method or {"kind": "auto", **allowed}, **keys})
    where = parse_device(device)
    assert where.total is not None
    return plan_run(
        config, where, budget=where.total, cache=None, sink=lambda event: None, only_allowed=bool(only or method)
    )


def cases(*, quick: bool) -> list[Case]:
    if quick:
        return [Case(SMALLEST, "lora", 2, True, 32)]
    larger = [
        Case(shape, name, *SETTINGS[(at + turn) % 2])
        for at, shape in enumerate(SHAPES[:-1])
        for turn, name in enumerate(METHODS)
    ]
    every = larger + [Case(SMALLEST, name, rows, ckpt) for name in METHODS for rows, ckpt in SETTINGS]
    others = [Case(SMALLEST, name, rows, ckpt) for name in registered() for rows, ckpt in SETTINGS]
    return [*every, *others, *(Case(SMALLEST, name, rows, True, dtype="bf16") for name, rows in BF16)]


def line(row: dict[str, Any]) -> str:
    return (
        f"{row['case']:44s} {row['phase']:9s} plan {row['predicted'] / MIB:9.1f} MiB  measured "
        f"{row['measured'] / MIB:9.1f}  {row['error']:7.3%}   RSS {row['rss'] / MIB:8.0f} MiB  {row['rss_error']:6.1%}"
    )


def keys_of(rows: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    errors, resident = [row["error"] for row in rows], [row["rss_error"] for row in rows]
    return {
        "cases": len(rows),
        "mean_error": statistics.fmean(errors),
        "worst_error": max(errors),
        "rss_mean_error": statistics.fmean(resident),
        "rss_worst_error": max(resident),
        "seconds_per_plan_7b": round(seconds, 1),
    }


NOTES = """Tensor bytes: all live storages at the largest moment of attach, step, evaluation and save, counted by the
same tracker on the real run and on the plan's fake tensors. RSS: peak resident memory of a child process that does
nothing else, against the plan's tensors plus `base`, `adapters` and `workspace` of the CPU in `lowmem.plan.devices`;
the rest is memory inside operations. The child runs with MALLOC_MMAP_THRESHOLD_=131072, so that freed blocks are given
back: without it glibc keeps those below 32 MiB, which the planner counts apart as `retained`."""


def accuracy_table(rows: list[dict[str, Any]]) -> dict[str, Any]:
    columns = ["case", "peak in", "predicted MiB", "measured MiB", "error", "expected RSS MiB", "RSS MiB", "error"]
    cells = [
        [
            row["case"],
            row["phase"],
            round(row["predicted"] / MIB, 1),
            round(row["measured"] / MIB, 1),
            f"{row['error']:.3%}",
            round(row["expected_rss"] / MIB),
            round(row["rss"] / MIB),
            f"{row['rss_error']:.1%}",
        ]
        for row in rows
    ]
    return {"title": "Predicted and measured peaks", "columns": columns, "rows": cells}


def run_cases(chosen: list[Case], *, kept: Path | None) -> list[dict[str, Any]]:
    """Every case compared; measurements in `kept` are not taken again, so a long run can be continued."""
    rows = []
    with random_models(sorted({case.shape for case in chosen})) as folders:
        for case in chosen:
            file = kept / f"{case.title.replace(', ', '_').replace(' ', '-')}.json" if kept else None
            real = json.loads(file.read_text()) if file is not None and file.is_file() else None
            real = real or measured_in_child(case, folders[case.shape])
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(real))
            rows.append(compare(case, real))
            print(line(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--fresh", action="store_true", help="measure again what runs/bench_plan_accuracy holds")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        print(json.dumps(measure(Case(**json.loads(given.case)), given.folder)))
        return
    if given.tables:
        write_tables()
        return
    kept = ROOT / "runs" / "bench_plan_accuracy"
    if given.fresh:
        shutil.rmtree(kept, ignore_errors=True)
    rows = run_cases(cases(quick=given.quick), kept=None if given.quick else kept)
    keys = keys_of(rows, seconds_per_plan_7b())
    if not given.quick:
        from results import write_result

        write_result(
            "bench_plan_accuracy",
            title="Predicted against measured memory",
            headline=f"The planner's peak of tensor bytes is off by {keys['mean_error']:.3%} on average and "
            f"{keys['worst_error']:.3%} at worst over {keys['cases']} real runs; resident memory by "
            f"{keys['rss_mean_error']:.1%} and {keys['rss_worst_error']:.1%}.",
            command="python examples/bench_plan_accuracy.py",
            keys=keys,
            tables=[accuracy_table(rows)],
            notes=NOTES,
        )
    print(json.dumps(keys))


PUBLISHED_MEZO = {"opt-1.3b": 4, "opt-2.7b": 7, "opt-6.7b": 14, "opt-13b": 26, "opt-30b": 58}
"""GB read off the bars of figure 2 of arXiv 2305.17333, to about 1: MultiRC, batch 1, about 400 tokens."""
PROJECTED = {"kind": "gum", "rank": 128, "gamma": 2, "state_dtype": "bf16"}
CARDS = ("cuda:24GiB", "cuda:8GiB")


def mezo_table() -> dict[str, Any]:
    """The planner's zeroth-order row beside the published figure, read as GiB; all logits at once, as MeZO has them."""
    from lowmem.plan.devices import CUDA

    rows = []
    for model, published in PUBLISHED_MEZO.items():
        plan = plan_of(model, "cuda:80GiB", rows=1, checkpointing=True, tokens=400, only=("zo",), chunk=512)
        row = next(row for row in plan.rows if row.name == "zo")
        needed = row.total + round(CUDA.margin * row.tensors)
        sizes = [round(nbytes / GIB, 2) for nbytes in (row.tensors, row.total, needed)]
        rows.append([model, published, *sizes, f"{sizes[2] - published:+.2f}", f"{sizes[2] / published - 1:+.1%}"])
    columns = [
        "model",
        "published",
        "tensors",
        "with the device's own",
        "and the margin of fits",
        "difference",
        "share",
    ]
    return {"title": "MeZO's memory, batch 1 x 400 tokens, GiB", "columns": columns, "rows": rows}


def card_table(model: str, device: str) -> dict[str, Any]:
    """Every method on one card at 1 x 512 tokens with checkpointing, zeroth order at 8 x 512; GiB."""
    first = plan_of(model, device, rows=1, checkpointing=True)
    zeroth = plan_of(model, device, rows=8, checkpointing=True, task=True, only=("zo",))
    chosen = [row for row in first.rows if not row.name.startswith("zo")]
    chosen += [row for row in zeroth.rows if row.name.startswith("zo")]
    chosen += [
        replace(row, name=f"gum r=128, {clipping} clipping")
        for clipping in ("per_layer", "exact")
        for row in plan_of(model, device, rows=1, checkpointing=True, method=PROJECTED | {"clipping": clipping}).rows
    ]
    cells = [
        [
            row.name,
            f"{row.examples}x512",
            round(row.tensors / GIB, 2),
            round(row.total / GIB, 2),
            row.peak.phase,
            row.verdict,
        ]
        for row in chosen
    ]
    columns = ["method", "batch", "tensors", "device", "peak in", "verdict"]
    return {"title": f"{model} on {device}, GiB", "columns": columns, "rows": cells}


def headline_of(tables: list[dict[str, Any]]) -> str:
    """What the smallest card can do, from the tables themselves."""
    fitting = {
        table["title"].split(" on ")[0]: [row[0] for row in table["rows"] if row[-1] == "fits"]
        for table in tables
        if "8GiB" in table["title"]
    }
    parts = [f"{model} by {', '.join(names) or 'nothing'}" for model, names in fitting.items()]
    return f"Planned, not measured: a card of 8 GiB trains {'; '.join(parts)}."


def write_tables() -> None:
    """docs/results/plan_tables.json."""
    from results import write_result

    published = mezo_table()
    planned = {row[0]: row[4] for row in published["rows"]}
    tables = [published, *(card_table(model, card) for model in ("opt-1.3b", "llama-2-7b") for card in CARDS)]
    for table in tables:
        print(table["title"])
        for row in table["rows"]:
            print("   ", *row)
    write_result(
        "plan_tables",
        title="Planned memory of published models",
        headline=headline_of(tables[1:]),
        command="python examples/bench_plan_accuracy.py --tables",
        keys={"mezo_planned_gib": planned},
        tables=tables,
        notes=TABLE_NOTES,
    )
    print(json.dumps({"mezo_planned_gib": planned}))


TABLE_NOTES = """Planned, not measured: no GPU. First-order rows: 1 x 512 tokens, all trained, with checkpointing,
chunked loss, r = 8 on all linear layers. Zeroth-order rows: 8 x 512 tokens of a classification task, so that the head
sees one position per row. Device = tensors + CUDA constants of `lowmem.plan.devices`, not fitted to these rows;
MeZO's figure is what the driver reported, so it is set beside the size at which the planner says "fits", whose margin
stands for what the allocator reserves."""


if __name__ == "__main__":
    main()
