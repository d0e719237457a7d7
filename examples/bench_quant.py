"""What 2, 3 and 4 bits cost: our codes with each rotation and rounding, and other tools, on one model and one text.

    python examples/bench_quant.py --tier session    # docs/results/bench_quant.json; goes on where it was stopped
    python examples/bench_quant.py --quick           # the embedded reasoner, under a minute; writes nothing

`examples/protocols/quant.yaml` says what is compared and how it is decided. llama.cpp runs in an interpreter of its
own, named by LLAMA_PYTHON, since it compiles from source (`pip install llama-cpp-python gguf`); HQQ is optional.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from typing import Any

import torch
from protocol import ROOT, Protocol, digest, open_protocol
from quant.judge import Judge, chunks_of, logits_of
from quant.peers import peer
from quant.report import keys_of, record
from quant.variants import code, outcome

from lowmem.models.load import LoadedModel, load_model
from lowmem.models.source import ModelSource

TEXTS = ROOT.parent / "shared" / "data" / "wikitext2"


def loaded(settings: dict[str, Any]) -> LoadedModel:
    """A fresh original."""
    return load_model(ModelSource(model=settings["model"], dtype="fp32"), device=torch.device("cpu"))


class Bench:
    """The texts and the original's answers, made when the first cell is missing."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol, self.settings = protocol, protocol.settings
        self._judge: Judge | None = None

    def chunks(self, split: str, count: str) -> list[torch.Tensor]:
        tokenizer = loaded(self.settings).tokenizer
        path = TEXTS / f"{split}.txt"
        return chunks_of(tokenizer, path, count=self.settings[count], context=self.settings["context"])

    @property
    def judge(self) -> Judge:
        if self._judge is None:
            original = logits_of(loaded(self.settings).model)
            self._judge = Judge(original, self.chunks("test", "judged_chunks"))
        return self._judge

    def original(self) -> dict[str, Any]:
        return {"perplexity": self.judge.original_perplexity}

    def variant(self, variant: dict[str, Any]) -> dict[str, Any]:
        model = loaded(self.settings).model
        folder = self.protocol.folder / "codes" / digest(variant)
        weights = code(model, self.chunks("validation", "calibration_chunks"), variant, self.settings, folder)
        return outcome(model, weights, self.judge)

    def peer(self, name: str) -> dict[str, Any]:
        calibration = self.chunks("validation", "calibration_chunks")
        return peer(name, loaded(self.settings), self.judge, calibration, self.protocol.folder / "peers")


def run(bench: Bench, only: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Rows by name, and the names of cells that are still to do. With `only`, no others are computed, in that order."""
    protocol = bench.protocol
    rows: dict[str, Any] = {"original": protocol.cell({"original": True}, bench.original)}
    missing = []
    jobs: list[tuple[dict[str, Any], Any]] = [
        ({"variant": variant}, lambda variant=variant: bench.variant(variant)) for variant in bench.settings["variants"]
    ]
    jobs += [({"peer": name}, lambda name=name: bench.peer(name)) for name in bench.settings["peers"]]
    names = [title_of(key) for key, _ in jobs]
    if unknown := [name for name in only if name not in names]:
        raise SystemExit(f"--only {unknown[0]!r} is no cell of this tier; these are: {', '.join(names)}")
    for name in only:
        protocol.cell(*jobs[names.index(name)])
    for name, (key, compute) in zip(names, jobs, strict=True):
        if only and not protocol.has(key):
            missing.append(name)
            continue
        rows[name] = found = protocol.cell(key, compute)
        shown = {key: found[key] for key in ("perplexity", "kl", "top1", "linear_bits", "cpu_seconds")}
        print(f"{name:28s}", {key: round(value, 4) for key, value in shown.items()}, flush=True)
    return rows, missing


def title_of(key: dict[str, Any]) -> str:
    if "peer" in key:
        return str(key["peer"])
    variant = key["variant"]
    equal = " at harp's bytes" if variant.get("bytes") else ""
    return f"{variant['kind']} {variant['rotation']} {variant['feedback']}{equal}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=["quick", "session", "full"], default="session")
    parser.add_argument("--quick", action="store_true", help="the same as --tier quick")
    parser.add_argument("--only", nargs="+", default=[], metavar="CELL", help="compute these cells, in this order")
    given = parser.parse_args()
    os.chdir(ROOT)
    torch.set_num_threads(1)
    protocol = open_protocol("quant", "quick" if given.quick else given.tier)
    rows, missing = run(Bench(protocol), given.only)
    keys = keys_of(rows) | {"unfinished": missing}
    if protocol.tier != "quick":
        record(protocol, rows, keys)
    print(json.dumps(keys))


if __name__ == "__main__":
    main()
