"""Speed of the packed products: GEMV against reading the same bytes, and decoding of a 1B-class model.

    LLAMA_PYTHON=… python examples/bench_quant_kernels.py [--quick] [--threads 2] [--no-decode | --no-llama]
        [--record]
    python examples/bench_quant_kernels.py --aot        (what the Triton kernels need on GPUs; runs nothing)

A GEMV of 4096 x 11008 runs over rotating copies of the weight, 512 MB in all (see quant/gemv_speed.py). Decoding takes
a model of random weights (22 layers of width 2048, 5632 inside, 4 of 32 heads for keys): in transformers in fp32 and
bf16, with its linear layers packed with a Hadamard rotation on both sides and a 4-bit head, and in llama.cpp as Q2_K,
all in turn (quant/decode_speed.py). bf16 is emulated on processors without bf16 instructions, so fp32 is shown beside
it. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from quant.ahead import compile_ahead
from quant.decode_speed import decode
from quant.gemv_speed import gemv, reader
from results import write_result

from lowmem.kernels import packed as native
from lowmem.kernels.build import LEVELS
from lowmem.quant.codec import KINDS, Kind

COPIES = 512 * 2**20
DECODED: tuple[Kind, ...] = ("s2", "e8")


def gemv_rows(kinds: tuple[Kind, ...], *, rounds: int, folder: Path) -> dict[str, dict[str, float]]:
    read = reader(folder)
    rows = {}
    for kind in kinds:
        rows[kind] = row = gemv(kind, read, total=COPIES, rounds=rounds)
        print(
            f"{kind}: {row['gb_per_s']:.2f} GB/s of packed bytes, {row['fraction']:.1%} of a read-only loop"
            f" ({row['read_gb_per_s']:.2f} GB/s)",
            flush=True,
        )
    return rows


def decoded_line(keys: dict[str, Any], kind: Kind, bandwidth: float) -> str:
    roof = bandwidth * 1e9 / keys[f"{kind}_bytes_a_token"]
    peer = f", {keys[f'{kind}_over_llama_q2_k']:.2f} x llama.cpp Q2_K" if f"{kind}_over_llama_q2_k" in keys else ""
    return (
        f"{kind}: {1 / keys[f'{kind}_s_per_token']:.1f} tokens/s, {keys[f'{kind}_over_bf16']:.2f} x transformers bf16"
        f" and {keys[f'{kind}_over_fp32']:.2f} x fp32{peer}; roofline {roof:.1f} tokens/s; rotations"
        f" {keys[f'{kind}_rotation_share']:.1%}"
    )


def record(keys: dict[str, Any], rows: dict[str, dict[str, float]], made: dict[str, Any], command: str) -> Path:
    """docs/results/bench_quant_kernels.json."""
    decoded = [
        ["transformers fp32", keys["fp32_s_per_token"], "", "", ""],
        ["transformers bf16 (emulated)", keys["bf16_s_per_token"], "", "", ""],
        ["llama.cpp Q2_K", keys["llama_q2_k_s_per_token"], made["bytes_a_token"], "", ""],
    ]
    for kind in DECODED:
        share = keys[f"{kind}_rotation_share"]
        columns = (keys[f"{kind}_s_per_token"], int(keys[f"{kind}_bytes_a_token"]), share)
        decoded.append([f"ours, {kind}", *columns, keys[f"{kind}_over_llama_q2_k"]])
    return write_result(
        "bench_quant_kernels",
        title="Packed products on a CPU",
        headline=(
            f"decoding a 1B-class shape with {keys['threads']} thread: s2 {keys['s2_over_bf16']:.1f} times transformers"
            f" in bf16 (emulated here; {keys['s2_over_fp32']:.1f} times fp32), {keys['s2_over_llama_q2_k']:.2f} times"
            f" llama.cpp Q2_K; GEMV at {rows['s2']['fraction']:.0%} (s2) and {rows['e8']['fraction']:.0%} (e8) of a"
            " read-only loop"
        ),
        command=command,
        keys=keys,
        tables=[
            {
                "title": "GEMV 4096 x 11008 over 512 MB",
                "columns": ["kind", "GB/s of packed bytes", "read-only loop, GB/s", "fraction"],
                "rows": [
                    [kind, round(row["gb_per_s"], 2), round(row["read_gb_per_s"], 2), round(row["fraction"], 3)]
                    for kind, row in rows.items()
                ],
            },
            {
                "title": "Seconds per decoded token",
                "columns": ["", "seconds", "bytes a token", "rotations", "times llama.cpp"],
                "rows": [[round(c, 4) if isinstance(c, float) else c for c in row] for row in decoded],
            },
        ],
        notes=(
            "One run on a machine shared with other work; CPU seconds, all in turn, medians over rounds of ratios"
            f" within a round. Random weights. llama.cpp {made['version']} mixes types under Q2_K ({made['types']}) and"
            " so reads more bytes than 2-bit linear layers with a 4-bit head."
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute: fewer rounds, kinds and layers")
    parser.add_argument("--no-decode", action="store_true", help="GEMV only")
    parser.add_argument("--no-llama", action="store_true", help="decode without llama.cpp")
    parser.add_argument("--threads", type=int, default=1, help="of decoding; GEMV fractions are of one thread")
    parser.add_argument("--record", action="store_true", help="write docs/results/bench_quant_kernels.json")
    parser.add_argument("--aot", action="store_true", help="compile the Triton kernels for sm_80 to sm_90")
    options = parser.parse_args()
    if options.aot:
        wanted: tuple[Kind, ...] = ("s2", "e8", "e8r", "nested") if options.quick else KINDS
        reports = [row for sm in (80, 86, 89, 90) for row in compile_ahead(sm, wanted)]
        for row in reports:
            print(*(f"{key}={value}" for key, value in row.items()), sep="  ")
        print(json.dumps({"kernels": reports}))
        return
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keys: dict[str, Any] = {"level": LEVELS[native.level()], "threads": options.threads}
    kinds: tuple[Kind, ...] = DECODED if options.quick else KINDS
    made: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        rows = gemv_rows(kinds, rounds=3 if options.quick else 9, folder=Path(folder))
        keys |= {f"gemv_bandwidth_{kind}": row["fraction"] for kind, row in rows.items()}
        keys |= {f"gemv_gb_per_s_{kind}": row["gb_per_s"] for kind, row in rows.items()}
        if not options.no_decode:
            torch.set_num_threads(options.threads)
            size = {"layers": 4, "rounds": 3} if options.quick else {"layers": 22, "rounds": 9}
            peer = not options.no_llama
            found, made = decode(DECODED, **size, tokens=5, threads=options.threads, peer=peer, folder=Path(folder))
            keys |= found
            for kind in DECODED:
                print(decoded_line(keys, kind, rows["s2"]["read_gb_per_s"]))
    keys = {key: round(value, 4) if isinstance(value, float) else value for key, value in keys.items()}
    if options.record:
        record(keys, rows, made, "python examples/bench_quant_kernels.py --record")
    print(json.dumps(keys))


if __name__ == "__main__":
    main()
