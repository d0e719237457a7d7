"""Speed of the packed products: GEMV against reading the same bytes, and decoding of a 1B-class model.

    python examples/bench_quant_kernels.py [--quick] [--no-decode]
    python examples/bench_quant_kernels.py --aot        (what the Triton kernels need on GPUs; runs nothing)

One thread. A GEMV of 4096 x 11008 runs over rotating copies of the weight (512 MB in all), in turn with a loop that
only reads as many bytes of other copies, with the same prefetch or without, whichever is faster; a fraction is the
median over rounds of read time over GEMV time, in CPU seconds. Decoding
takes a model of random weights (22 layers of width 2048, 5632 inside, 4 of 32 heads for keys): once in transformers
in fp32 and bf16, once with its linear layers packed with a Hadamard rotation on both sides and a 4-bit head. bf16 is
emulated on processors without bf16 instructions, so fp32 is shown beside it. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lowmem.kernels import packed as native
from lowmem.kernels.build import LEVELS, find_compiler
from lowmem.quant.codec import BLOCK, KINDS, PLANE_BYTES, Kind, PackedWeight, group_count, padded
from lowmem.quant.linear import QuantLinear, transform
from lowmem.quant.product import native_product
from lowmem.quant.rotation import no_rotation, random_hadamard

READ = """
#include <stdint.h>
typedef uint64_t Words __attribute__((vector_size(32)));
extern "C" uint64_t read_rows(const uint8_t *data, int64_t rows, int64_t bytes, int64_t ahead) {
    Words even = {}, odd = {};
    for (int64_t i = 0; i + 64 <= rows * bytes; i += 64) {
        if (ahead) __builtin_prefetch(data + i + ahead);
        even ^= *(const Words *)(data + i);
        odd ^= *(const Words *)(data + i + 32);
    }
    even ^= odd;
    return even[0] ^ even[1] ^ even[2] ^ even[3];
}
"""
"""The rows in the order of a GEMV, exclusive or in place of products."""


def reader(folder: Path) -> Callable[[torch.Tensor, int], int]:
    """Compiled for the best level here, so that it is bound by memory."""
    source, made = folder / "read.cpp", folder / "read.so"
    source.write_text(READ)
    subprocess.run(
        [find_compiler(), "-O3", "-march=native", "-shared", "-fPIC", str(source), "-o", str(made)], check=True
    )
    function = ctypes.CDLL(str(made)).read_rows
    function.argtypes, function.restype = (ctypes.c_void_p, *(ctypes.c_int64,) * 3), ctypes.c_uint64
    return lambda plane, ahead: int(function(plane.data_ptr(), *plane.shape, ahead))


def random_weight(kind: Kind, m: int, n: int, *, group_size: int = 0) -> PackedWeight:
    planes = tuple(
        torch.randint(0, 2**62, (m * padded(n) // BLOCK * size // 8 + 1,)).view(torch.uint8)[
            : m * padded(n) // BLOCK * size
        ]
        for size in PLANE_BYTES[kind]
    )
    shaped = tuple(plane.view(m, -1).clone() for plane in planes)  # fresh memory is aligned
    scales = torch.full((m, group_count(n, group_size)), 0.01).half()
    return PackedWeight(kind, (m, n), shaped, scales, 1.0, 0.28 if kind in ("e8r", "nested") else 0.0, group_size)


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def gemv(kind: Kind, read: Callable[[torch.Tensor, int], int], *, total: int, rounds: int) -> dict[str, float]:
    """Fraction of the read-only loop and GB/s of both."""
    first = random_weight(kind, 4096, 11008)
    nbytes = sum(plane.numel() for plane in first.planes)
    copies = [first, *(random_weight(kind, 4096, 11008) for _ in range(total // nbytes))]
    x = torch.randn(1, 11008)
    own: list[float] = []
    reads: list[float] = []
    for round_ in range(rounds + 1):
        times = {"own": 0.0, "plain": 0.0, "ahead": 0.0}
        for i, weight in enumerate(copies):  # each copy comes back long after the caches forgot it
            others = [copies[(i + len(copies) * k // 3) % len(copies)].planes for k in (1, 2)]
            times["own"] += seconds(lambda weight=weight: native_product(x, weight, exact=False))
            times["plain"] += seconds(lambda planes=others[0]: [read(plane, 0) for plane in planes])
            times["ahead"] += seconds(lambda planes=others[1]: [read(plane, 1024) for plane in planes])
        if round_:
            own.append(times["own"])
            reads.append(min(times["plain"], times["ahead"]))
    moved = nbytes * len(copies) / 1e9
    return {
        "fraction": statistics.median(r / o for r, o in zip(reads, own, strict=True)),
        "gb_per_s": moved / statistics.median(own),
        "read_gb_per_s": moved / statistics.median(reads),
    }


def quantize_randomly(model: torch.nn.Module, kind: Kind) -> int:
    """Replaces every linear layer in place; the bytes that one token reads."""
    nbytes = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, torch.nn.Linear):
                continue
            m, n = child.weight.shape
            head = name == "lm_head"
            weight = random_weight("int4" if head else kind, m, n, group_size=64 if head else 0)
            nbytes += weight.nbytes
            sides = (no_rotation(n), no_rotation(m)) if head else (random_hadamard(n, 0), random_hadamard(m, 1))
            setattr(parent, name, QuantLinear(weight, *sides))
    return nbytes


def llama(layers: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def token_seconds(model: Any, tokens: int) -> float:
    """Median CPU seconds of one decoded token after a prompt of four."""
    times = []
    with torch.inference_mode():
        out = model(torch.ones(1, 4, dtype=torch.long), use_cache=True)
        for _ in range(tokens + 1):
            cache = out.past_key_values
            start = time.process_time()
            out = model(torch.ones(1, 1, dtype=torch.long), past_key_values=cache, use_cache=True)
            times.append(time.process_time() - start)
    return statistics.median(times[1:])


def rotation_seconds(model: torch.nn.Module) -> float:
    """CPU seconds of all rotations of one token."""
    total = 0.0
    for layer in model.modules():
        if isinstance(layer, QuantLinear):
            for side, inverse in (("in", False), ("out", True)):
                ready = transform(layer.rotation(side), inverse=inverse)
                if ready is not None:
                    x = torch.randn(1, layer.in_features if side == "in" else layer.out_features)
                    ready(x)
                    total += seconds(lambda ready=ready, x=x: ready(x))
    return total


def decode(*, quick: bool, bandwidth: float) -> dict[str, float]:
    tokens, layers = (3, 4) if quick else (12, 22)
    model = llama(layers)
    result = {"layers": float(layers), "fp32_s_per_token": token_seconds(model, tokens)}
    model.bfloat16()
    result["bf16_s_per_token"] = token_seconds(model, 3)
    model.float()
    for kind in ("s2", "e8"):
        packed = llama(layers) if kind == "e8" else model
        nbytes = quantize_randomly(packed, kind)
        own, rotations = token_seconds(packed, tokens), rotation_seconds(packed)
        result[f"{kind}_s_per_token"] = own
        result[f"{kind}_over_bf16"] = result["bf16_s_per_token"] / own
        result[f"{kind}_over_fp32"] = result["fp32_s_per_token"] / own
        result[f"{kind}_rotation_share"] = rotations / own
        result[f"{kind}_roofline_s_per_token"] = nbytes / bandwidth / 1e9
        print(
            f"{kind}: {1 / own:.1f} tokens/s; roofline {bandwidth * 1e9 / nbytes:.1f} tokens/s"
            f" ({nbytes / 1e6:.0f} MB a token at {bandwidth:.1f} GB/s); rotations {rotations / own:.1%}"
        )
        del packed
    return result


def compile_ahead(capability: int, kinds: tuple[Kind, ...]) -> list[dict[str, object]]:
    """Registers, shared memory and spilled bytes of every Triton kernel for every kind."""
    import triton
    import triton.language as tl
    from bench_perturb import _usage
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lowmem.kernels.triton_packed import gemm_kernel, gemv_kernel, rotate_stage_kernel, unpack_kernel
    from lowmem.quant.triton_product import COLUMNS, LAUNCH, ROWS, TOKENS

    bytes_ = {
        "plane0": "*u8",
        "plane1": "*u8",
        "scales": "*fp16",
        "levels": "*i8",
        "patterns": "*u8",
        "residual": "*u8",
    }
    numbers = {"m": "i32", "n": "i32", "group": "i32", "gain": "fp32", "residual_scale": "fp32"}
    cases: list[tuple[str, Any, dict[str, str], dict[str, Any]]] = []
    for kind in kinds:
        own = {"KIND": native.KINDS.index(kind), "ROWS": ROWS}
        io = {"x": "*fp32", "out": "*fp32"}
        cases.append((f"gemv_{kind}", gemv_kernel, io | bytes_ | numbers, own))
        tiles = own | {"TOKENS": TOKENS, "COMPUTE": tl.bfloat16}
        cases.append((f"gemm_{kind}", gemm_kernel, io | bytes_ | {"tokens": "i32"} | numbers, tiles))
        cases.append((f"unpack_{kind}", unpack_kernel, {"out": "*bf16"} | bytes_ | numbers, own))
    vectors = dict.fromkeys(("x", "out", "before", "after", "matrices"), "*fp32")
    for shared in (True, False):
        flags = {"SHARED": shared, "BEFORE": True, "AFTER": False, "COLUMNS": COLUMNS}
        sizes = {"n": "i32", "radix": "i32", "stride": "i32"}
        cases.append((f"rotate_{'shared' if shared else 'learned'}", rotate_stage_kernel, vectors | sizes, flags))
    reports: list[dict[str, object]] = []
    for title, kernel, signature, constants in cases:
        source = ASTSource(
            fn=kernel,
            signature={name: signature.get(name, "constexpr") for name in kernel.arg_names},
            constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        )
        built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(LAUNCH))
        needs = {"shared": built.metadata.shared, **_usage(built.asm["cubin"])}
        reports.append({"kernel": title, "sm": capability, **needs})
    return reports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute: fewer rounds and layers")
    parser.add_argument("--no-decode", action="store_true", help="GEMV only")
    parser.add_argument("--aot", action="store_true", help="compile the Triton kernels for sm_80 to sm_90")
    options = parser.parse_args()
    if options.aot:
        wanted: tuple[Kind, ...] = ("s2", "e8", "nested") if options.quick else KINDS
        reports = [row for sm in (80, 86, 89, 90) for row in compile_ahead(sm, wanted)]
        for row in reports:
            print(*(f"{key}={value}" for key, value in row.items()), sep="  ")
        print(json.dumps({"kernels": reports}))
        return
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kinds: tuple[Kind, ...] = (
        ("s2", "e8") if options.quick else ("s2", "s3", "s4", "int4", "int8", "e8", "e8r", "nested")
    )
    keys: dict[str, Any] = {"level": LEVELS[native.level()], "threads": 1}
    with tempfile.TemporaryDirectory() as folder:
        read = reader(Path(folder))
        bandwidth = 0.0
        for kind in kinds:
            row = gemv(kind, read, total=512 * 2**20, rounds=3 if options.quick else 7)
            bandwidth = bandwidth or row["read_gb_per_s"]
            print(
                f"{kind}: {row['gb_per_s']:.2f} GB/s of packed bytes, {row['fraction']:.1%} of a read-only loop"
                f" ({row['read_gb_per_s']:.2f} GB/s)"
            )
            keys[f"gemv_bandwidth_{kind}"] = row["fraction"]
            keys[f"gemv_gb_per_s_{kind}"] = row["gb_per_s"]
    if not options.no_decode:
        keys |= decode(quick=options.quick, bandwidth=bandwidth)
    print(json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in keys.items()}))


if __name__ == "__main__":
    main()
