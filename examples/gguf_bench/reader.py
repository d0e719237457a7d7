"""What llama.cpp makes of a GGUF file. Runs in any Python that has llama-cpp-python, this project need not be there.

    python reader.py < order.json      order: {"gguf": PATH, "texts": [...], "new_tokens": N, "out": PATH.npz}

For each text: its token ids, the logits after each of them, and N tokens of greedy continuation.
"""

from __future__ import annotations

import json
import sys

import numpy as np


def main() -> None:
    from llama_cpp import Llama

    order = json.load(sys.stdin)
    model = Llama(order["gguf"], n_ctx=512, n_threads=1, logits_all=True, verbose=False)
    found = {}
    for index, text in enumerate(order["texts"]):
        ids = model.tokenize(text.encode(), add_bos=False, special=True)
        model.reset()
        model.eval(ids)
        found[f"ids-{index}"] = np.array(ids)
        found[f"logits-{index}"] = model.scores[: len(ids)].astype(np.float32)
        answer: list[int] = []
        for _ in range(order["new_tokens"]):
            answer.append(int(model.scores[model.n_tokens - 1].argmax()))
            model.eval(answer[-1:])
        found[f"answer-{index}"] = np.array(answer)
    np.savez(order["out"], **found)


if __name__ == "__main__":
    main()
