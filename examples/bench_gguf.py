"""A model exported by `lowmem export --to gguf`, opened by llama.cpp: the same tokens, logits and greedy answers?

    python examples/bench_gguf.py --python OTHER/bin/python          # one that has llama-cpp-python
    python examples/bench_gguf.py --model MODEL --python …           # any Llama, Qwen2 or Qwen3; writes nothing

llama.cpp rounds activations to fp16 where the weights are fp16, so logits agree to about 1e-2 and not to the last
bit. Ours runs the same fp16-rounded weights in fp32. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf_bench.compare import Agreement, Reading, agreement

from lowmem.jobs.export import export
from lowmem.models.load import load_model
from lowmem.models.source import ModelSource

MODEL = "smollm2-135m-instruct"
READER = Path(__file__).parent / "gguf_bench" / "reader.py"
TEXTS = (
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "Water boils at 100 degrees, and 3141592 is a number; don't you think?",
    "Ein Satz mit Umlauten: schöne Grüße. 日本語も少し。",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
)
NEW_TOKENS = 24
COLUMNS = ["text", "same tokens", "same first choice", "largest difference", "mean KL", "same greedy tokens"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="a Python that has llama-cpp-python")
    parser.add_argument("--model", default=MODEL)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        file = export(given.model, Path(folder) / "model.gguf", to="gguf", dtype="fp16", sink=lambda _: None)
        theirs = _read(given.python, file, Path(folder) / "read.npz")
        found = _compare(given.model, theirs)
    rows = [_row(text, one) for text, one in zip(TEXTS, found, strict=True)]
    for row in [COLUMNS, *rows]:
        print("  ".join(f"{cell:<20}" for cell in row))
    keys = _keys(found)
    if given.model == MODEL:
        _record(keys, rows)
    print(json.dumps(keys))


def _read(python: str, file: Path, out: Path) -> list[Reading]:
    order = {"gguf": str(file), "texts": TEXTS, "new_tokens": NEW_TOKENS, "out": str(out)}
    done = subprocess.run([python, str(READER)], input=json.dumps(order), text=True, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"{python} could not read the file with llama-cpp-python:\n{done.stderr[-1500:]}")
    with np.load(out) as held:
        return [
            Reading(held[f"ids-{i}"].tolist(), torch.from_numpy(held[f"logits-{i}"]), held[f"answer-{i}"].tolist())
            for i in range(len(TEXTS))
        ]


@torch.no_grad()
def _compare(model: str, theirs: list[Reading]) -> list[Agreement]:
    loaded = load_model(ModelSource(model, dtype="fp16"), device=torch.device("cpu"))
    ours, tokenizer = loaded.model.float(), loaded.tokenizer
    found = []
    for text, their in zip(TEXTS, theirs, strict=True):
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        logits = ours(input_ids=torch.tensor([ids])).logits[0]
        answer, ahead = _greedy(ours, ids)
        found.append(agreement(Reading(ids, logits, answer), their, ahead))
    return found


def _greedy(model: Any, ids: list[int]) -> tuple[list[int], list[float]]:
    """The answer, and at each token how far it was ahead of the second choice."""
    answer: list[int] = []
    ahead: list[float] = []
    for _ in range(NEW_TOKENS):
        best = model(input_ids=torch.tensor([ids + answer])).logits[0, -1].log_softmax(-1).topk(2)
        answer.append(int(best.indices[0]))
        ahead.append(float(best.values[0] - best.values[1]))
    return answer, ahead


def _row(text: str, one: Agreement) -> list[str]:
    tie = "" if one.tie is None else f" (then {one.tie:.3f} ahead)"
    shown = text.replace("\n", " ")[:18]
    numbers = [f"{one.top:.3f}", f"{one.largest:.4f}", f"{one.kl:.2e}"]
    return [shown, "yes" if one.same_tokens else "no", *numbers, f"{one.answer} of {NEW_TOKENS}{tie}"]


def _keys(found: list[Agreement]) -> dict[str, float]:
    return {
        "same_tokens": sum(one.same_tokens for one in found) / len(found),
        "same_first_choice": sum(one.top for one in found) / len(found),
        "largest_difference": max(one.largest for one in found),
        "mean_kl": sum(one.kl for one in found) / len(found),
        "same_greedy_tokens": sum(one.answer for one in found) / (NEW_TOKENS * len(found)),
    }


def _record(keys: dict[str, float], rows: list[list[str]]) -> None:
    from results import write_result

    write_result(
        "bench_gguf",
        title="An exported GGUF file in llama.cpp",
        headline=(
            f"SmolLM2-135M exported to GGUF, opened by llama.cpp: {keys['same_tokens']:.0%} of texts with the same "
            f"tokens, mean KL {keys['mean_kl']:.1e}, {keys['same_greedy_tokens']:.0%} of greedy tokens alike"
        ),
        command="python examples/bench_gguf.py --python PYTHON-WITH-LLAMA-CPP",
        keys=keys,
        tables=[{"title": f"{MODEL}, fp16, five texts", "columns": COLUMNS, "rows": rows}],
        notes="Ours: the same fp16 weights computed in fp32. Largest difference: of log-probabilities above log 1e-4.",
    )


if __name__ == "__main__":
    main()
