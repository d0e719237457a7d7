"""Run by peers.py in the interpreter that has llama-cpp-python: quantize a gguf, and keep the logits of given tokens.

    python llama_child.py ORIGINAL.gguf KIND CHUNKS.json FOLDER

Writes FOLDER/logits-000.npy … (tokens x vocabulary, fp16) and prints one JSON object: what the file holds.
"""

from __future__ import annotations

import collections
import ctypes
import json
import sys
from pathlib import Path

import llama_cpp
import numpy as np
from gguf import GGUFReader


def quantize(source: Path, kind: str, target: Path) -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.nthread = 1
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp does not make {kind} of this model (some kinds need an importance matrix)")


def contents(path: Path) -> dict[str, object]:
    """Bytes of the file, bytes and bits of the blocks' matrices, and how many of them have which type."""
    matrices = [t for t in GGUFReader(path).tensors if t.name.startswith("blk.") and len(t.shape) == 2]
    nbytes = sum(int(t.n_bytes) for t in matrices)
    count = sum(int(t.n_elements) for t in matrices)
    types = collections.Counter(t.tensor_type.name for t in matrices)
    return {
        "file_bytes": path.stat().st_size,
        "linear_bytes": nbytes,
        "linear_bits": 8 * nbytes / count,
        "types": dict(types),
    }


def main() -> None:
    source, kind, chunks, folder = (
        Path(sys.argv[1]),
        sys.argv[2],
        json.loads(Path(sys.argv[3]).read_text()),
        sys.argv[4],
    )
    target = Path(folder) / f"{kind}.gguf"
    quantize(source, kind, target)
    length = max(len(chunk) for chunk in chunks)
    model = llama_cpp.Llama(
        str(target), n_ctx=length, n_batch=length, logits_all=True, n_threads=1, n_threads_batch=1, verbose=False
    )
    for index, chunk in enumerate(chunks):
        model.reset()
        model.eval(chunk)
        np.save(Path(folder) / f"logits-{index:03d}.npy", np.asarray(model.scores[: len(chunk)], dtype=np.float16))
    print(json.dumps(contents(target)))


if __name__ == "__main__":
    main()
