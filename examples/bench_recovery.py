"""What training an adapter on 2-bit weights brings back, beside the original trained in the same way.

    python examples/bench_recovery.py --tier session    # docs/results/bench_recovery.json
    python examples/bench_recovery.py --quick           # the embedded reasoner, under a minute; writes nothing

`examples/protocols/recovery.yaml` fixes the question; codes are those of `bench_quant.py` of the same tier and made
where they are missing. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from bench_quant import TEXTS, loaded
from protocol import ROOT, Protocol, digest, open_protocol
from quant.judge import Judge, chunks_of, logits_of
from quant.variants import code

from lowmem.config.run import RunConfig
from lowmem.jobs.target import open_target
from lowmem.jobs.train import train
from lowmem.models.packed_folder import save_packed

STARTS = ("original", "coded")


class Bench:
    """Runs of the recovery protocol on the model, texts and codes of the protocol `quant`."""

    def __init__(self, protocol: Protocol, quant: Protocol) -> None:
        self.protocol, self.quant = protocol, quant
        self.work = protocol.folder / "models"
        self.work.mkdir(parents=True, exist_ok=True)

    def chunks(self, split: str, count: int) -> list[torch.Tensor]:
        tokenizer = loaded(self.quant.settings).tokenizer
        return chunks_of(tokenizer, TEXTS / f"{split}.txt", count=count, context=self.quant.settings["context"])

    def judge(self) -> Judge:
        return Judge(logits_of(loaded(self.quant.settings).model), self.chunks("test", self._count("judged")))

    def before(self, start: str) -> dict[str, Any]:
        """Perplexity of the model that training starts from, and how far it is from the original."""
        return self._judged(self._target(start))

    def after(self, start: str, seed: int) -> dict[str, Any]:
        """The same after training."""
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            train(self._config(self._target(start), run, seed), sink=lambda _: None)
            return self._judged(str(run))

    def _target(self, start: str) -> str:
        return str(self.quant.settings["model"]) if start == "original" else str(self.coded())

    def _judged(self, target: str) -> dict[str, Any]:
        found: dict[str, Any] = self.judge()(
            logits_of(open_target(target, sink=lambda _: None, dtype="fp32").loaded.model)
        )
        print(target, found, flush=True)
        return found

    def coded(self) -> Path:
        """The packed model, written once; embeddings stay as they are."""
        folder = self.work / "coded"
        if not folder.is_dir():
            variant = self.protocol.settings["quant"]
            original = loaded(self.quant.settings)
            codes = self.quant.folder / "codes" / digest(variant)
            calibration = self.chunks("validation", self._count("calibration"))
            weights = code(original.model, calibration, variant, self.quant.settings, codes)
            save_packed(original.model, weights, original.tokenizer, folder, record={"by": "bench_recovery"})
        return folder

    def _count(self, of: str) -> int:
        return int(self.quant.settings[f"{of}_chunks"])

    def _config(self, model: str, output: Path, seed: int) -> RunConfig:
        settings = self.protocol.settings
        return RunConfig.model_validate(
            {
                "model": model,
                "dtype": "fp32",
                "device": "cpu",
                "dataset": [{"format": "text", "path": str(self._text())}],
                "max_length": settings["context"],
                "per_device_train_batch_size": settings["rows"],
                "max_steps": settings["steps"],
                "method": settings["method"],
                "learning_rate": settings["learning_rate"],
                "lr_scheduler_type": "linear",
                "warmup_ratio": 0.05,
                "eval_steps": None,
                "save_steps": None,
                "seed": seed,
                "output_dir": str(output),
            }
        )

    def _text(self) -> Path:
        """A line for each chunk of the validation text that follows what the codes were calibrated on."""
        path = self.work / "text.jsonl"
        if not path.is_file():
            seen, tokenizer = self._count("calibration"), loaded(self.quant.settings).tokenizer
            chunks = self.chunks("validation", seen + self.protocol.settings["chunks"])[seen:]
            path.write_text("".join(json.dumps({"text": tokenizer.decode(chunk[0])}) + "\n" for chunk in chunks))
        return path


Cells = dict[str, dict[str, Any]]
"""Of each start: the figures before, and those after by seed."""


def keys_of(found: Cells) -> dict[str, Any]:
    """Perplexities (means of the seeds), and the parts of the two gaps that training closes."""
    original, coded = (found[start]["before"]["perplexity"] for start in STARTS)
    adapted, recovered = ([seed["perplexity"] for seed in found[start]["after"]] for start in STARTS)
    closed = [(coded - after) / (coded - original) for after in recovered]
    to_adapted = [(coded - after) / (coded - trained) for after, trained in zip(recovered, adapted, strict=True)]
    return {
        "original": round(original, 3),
        "original_trained": round(mean(adapted), 3),
        "coded": round(coded, 3),
        "coded_trained": round(mean(recovered), 3),
        "coded_trained_of_seeds": [round(after, 3) for after in recovered],
        "gap_closed": round(mean(closed), 4),
        "gap_closed_lowest": round(min(closed), 4),
        "gap_to_adapted_closed": round(mean(to_adapted), 4),
        "kl_before": round(found["coded"]["before"]["kl"], 4),
        "kl_after": round(mean(after["kl"] for after in found["coded"]["after"]), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=["quick", "session", "full"], default="session")
    parser.add_argument("--quick", action="store_const", const="quick", dest="tier", help="the same as --tier quick")
    given = parser.parse_args()
    os.chdir(ROOT)
    torch.set_num_threads(1)
    bench = Bench(open_protocol("recovery", given.tier), open_protocol("quant", given.tier))
    keys = keys_of(_cells(bench)) | {"cpu_minutes": round(bench.protocol.cpu_minutes(), 1)}
    if given.tier != "quick":
        _record(bench.protocol, keys)
    print(json.dumps(keys))


def _cells(bench: Bench) -> Cells:
    """Finished cells are read, the others computed; the seeds go in the outer loop, so that a stopped run is even."""
    cell = bench.protocol.cell
    found: Cells = {
        start: {"before": cell({"start": start}, lambda start=start: bench.before(start)), "after": []}
        for start in STARTS
    }
    for seed in bench.protocol.settings["seeds"]:
        for start in STARTS:
            key = {"start": start, "seed": seed}
            found[start]["after"].append(cell(key, lambda start=start, seed=seed: bench.after(start, seed)))
    return found


def _record(protocol: Protocol, keys: dict[str, Any]) -> None:
    from results import write_result

    settings = protocol.settings
    write_result(
        "bench_recovery",
        title="2-bit SmolLM2-135M after training an adapter on top",
        headline=(
            f"perplexity {keys['coded']:.1f} -> {keys['coded_trained']:.1f} (original {keys['original']:.1f}, which "
            f"the same training takes to {keys['original_trained']:.1f}): {keys['gap_closed']:.0%} of the gap, "
            f"{keys['gap_to_adapted_closed']:.0%} of that to the trained original"
        ),
        command=f"python examples/bench_recovery.py --tier {protocol.tier}",
        keys=keys | {"protocol_commit": protocol.commit},
        notes=f"{protocol.question.strip()} {settings['steps']} steps of {settings['rows']} chunks of "
        f"{settings['context']} tokens of WikiText-2's validation text, LoRA, rate {settings['learning_rate']:g}; "
        f"{len(settings['seeds'])} seeds. The KL divergence is that from the untrained original.",
    )


if __name__ == "__main__":
    main()
