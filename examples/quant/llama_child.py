"""Run by peers.py in the interpreter that has llama-cpp-python: quantize a gguf, and keep the logits of given tokens.

    python llama_child.py ORIGINAL.gguf KIND CHUNKS.json IMPORTANCE.npz FOLDER

IMPORTANCE.npz holds the mean square of every input column of every linear layer, by the layer's name in transformers;
llama.cpp weighs its errors with it. Writes FOLDER/logits-000.npy … (tokens x vocabulary, fp16) and prints one JSON
object: what the file holds.
"""

from __future__ import annotations

import collections
import ctypes
import json
import sys
from pathlib import Path

import llama_cpp
import numpy as np
from gguf import MODEL_ARCH, GGUFReader, get_tensor_name_map


def importance(path: Path) -> ctypes.Array[llama_cpp.llama_model_imatrix_data]:
    """llama.cpp's importance matrix: an entry a layer, ended by one without a name. The arrays live with the result."""
    by_layer = np.load(path)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, 1 + max(int(name.split(".")[2]) for name in by_layer))
    entries = (llama_cpp.llama_model_imatrix_data * (len(by_layer) + 1))()
    entries.kept = []
    for entry, (layer, values) in zip(entries, by_layer.items(), strict=False):
        floats = (ctypes.c_float * values.size)(*values.tolist())
        entries.kept.append(floats)
        entry.name = f"{names.get_name(layer)}.weight".encode()
        entry.data, entry.size = ctypes.cast(floats, ctypes.POINTER(ctypes.c_float)), values.size
    return entries


def quantize(source: Path, kind: str, weights: ctypes.Array[llama_cpp.llama_model_imatrix_data], target: Path) -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.imatrix = ctypes.cast(weights, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.nthread = 1
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp does not make {kind} of this model")


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
    source, kind, texts, weights, folder = sys.argv[1:]
    chunks = json.loads(Path(texts).read_text())
    target = Path(folder) / f"{kind}.gguf"
    quantize(Path(source), kind, importance(Path(weights)), target)
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
