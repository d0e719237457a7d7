"""Run by decode_speed.py in the interpreter that has llama-cpp-python: decode tokens of a random model, on demand.

    python llama_decode.py SHAPE.json FOLDER THREADS

The tensors get the types that llama.cpp's own quantizer chooses for Q2_K of this shape: it quantizes a narrow model
with as many layers and as many heads to a key, and the types are read from that file. Their codes are random bytes,
with scales that keep everything finite: the speed does not depend on them. Prints one JSON line that says what was
made; then, for every number N on its input, the CPU and wall seconds of N tokens.
"""

from __future__ import annotations

import collections
import ctypes
import json
import sys
import time
from pathlib import Path

import llama_cpp
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter

Shape = dict[str, int]
NARROW = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 512}
FP16_AT = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where a block of 256 weights keeps its fp16 scales."""
SCALE = np.frombuffer(np.float16(0.002).tobytes(), dtype=np.uint8)


def tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    width, inner, vocabulary = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    keys = width // shape["num_attention_heads"] * shape["num_key_value_heads"]
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, width)}
    for layer in range(shape["num_hidden_layers"]):
        own = {
            "attn_norm": (width,),
            "attn_q": (width, width),
            "attn_k": (keys, width),
            "attn_v": (keys, width),
            "attn_output": (width, width),
            "ffn_norm": (width,),
            "ffn_gate": (inner, width),
            "ffn_up": (inner, width),
            "ffn_down": (width, inner),
        }
        found |= {f"blk.{layer}.{name}.weight": size for name, size in own.items()}
    return found | {"output_norm.weight": (width,), "output.weight": (vocabulary, width)}


def write(path: Path, shape: Shape, types: dict[str, GGMLQuantizationType]) -> None:
    """A model of random weights; tensors that `types` does not name are fp32."""
    rng = np.random.default_rng(0)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(shape["hidden_size"])
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(shape["num_attention_heads"])
    writer.add_head_count_kv(shape["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape["hidden_size"] // shape["num_attention_heads"])
    writer.add_vocab_size(shape["vocab_size"])
    writer.add_tokenizer_model("none")
    for name, size in tensors(shape).items():
        kind = types.get(name)
        if len(size) == 1:
            writer.add_tensor(name, np.ones(size, dtype=np.float32))
        elif kind is None:
            writer.add_tensor(name, (rng.standard_normal(size) * 0.02).astype(np.float32))
        else:
            writer.add_tensor(name, random_codes(rng, size, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_codes(rng: np.random.Generator, size: tuple[int, ...], kind: GGMLQuantizationType) -> np.ndarray:
    weights, nbytes = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (size[0], size[1] // weights, nbytes), dtype=np.uint8)
    for at in FP16_AT[kind.name]:
        blocks[..., at : at + 2] = SCALE
    return blocks.reshape(size[0], -1)


def chosen_types(shape: Shape, folder: Path) -> dict[str, GGMLQuantizationType]:
    """What llama.cpp makes of each matrix under Q2_K."""
    narrow, made = folder / "narrow.gguf", folder / "narrow-q2_k.gguf"
    heads = shape["num_attention_heads"] // shape["num_key_value_heads"]
    write(narrow, shape | NARROW | {"num_attention_heads": heads, "num_key_value_heads": 1}, {})
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q2_K, 1
    if llama_cpp.llama_model_quantize(str(narrow).encode(), str(made).encode(), ctypes.byref(params)):
        raise SystemExit("llama.cpp did not quantize the narrow model")
    return {t.name: t.tensor_type for t in GGUFReader(made).tensors if len(t.shape) == 2}


class Decoder:
    """llama.cpp's own loop: one context, greedy positions, the same token again and again."""

    def __init__(self, path: Path, threads: int) -> None:
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_threads, params.n_threads_batch = 512, 32, threads, threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._model or not self._context:
            raise SystemExit("llama.cpp does not load the model")
        self._decode(4)

    def _decode(self, count: int) -> None:
        tokens = (llama_cpp.llama_token * count)(*[1] * count)
        if llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(tokens, count)):
            raise SystemExit("llama.cpp does not decode")
        llama_cpp.llama_get_logits(self._context)

    def seconds(self, tokens: int) -> list[tuple[float, float]]:
        """(CPU, wall) of every token."""
        found = []
        for _ in range(tokens):
            cpu, wall = time.process_time(), time.perf_counter()
            self._decode(1)
            found.append((time.process_time() - cpu, time.perf_counter() - wall))
        return found


def main() -> None:
    shape, folder, threads = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), int(sys.argv[3])
    path = folder / "random-q2_k.gguf"
    types = chosen_types(shape, folder)
    write(path, shape, types)
    read = [t for t in GGUFReader(path).tensors if t.name != "token_embd.weight"]
    made = {
        "types": dict(collections.Counter(t.name for t in types.values())),
        "bytes_a_token": sum(int(t.n_bytes) for t in read),
        "version": llama_cpp.__version__,
    }
    decoder = Decoder(path, threads)
    print(json.dumps(made), flush=True)
    for line in sys.stdin:
        print(json.dumps(decoder.seconds(int(line))), flush=True)


if __name__ == "__main__":
    main()
