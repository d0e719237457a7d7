"""Speed of the perturbation kernels against plain copying, and with --aot what the Triton kernels need on GPUs.

    python examples/bench_perturb.py [--quick] [--dtype bf16|fp32] [--device cpu|cuda] [--threads 1]
    python examples/bench_perturb.py --aot

Each pass is timed in turn with a copy of the same tensor into the same buffer; a fraction is the median
over rounds of (bytes read and written per second by the pass) / (the same of the copy of that round). The last line
is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lowmem.kernels import dispatch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
KEY, ROUNDING = 0x1234_5678_9ABC_DEF0, 42
TARGETS = (80, 86, 89, 90)


def passes(weight: torch.Tensor, scratch: torch.Tensor) -> dict[str, Callable[[], object]]:
    """What is timed; each reads and writes as many bytes as a copy of `weight`."""
    timed: dict[str, Callable[[], object]] = {}
    for kind in ("rademacher", "gaussian"):
        timed[f"perturb_{kind}"] = lambda kind=kind: dispatch.perturbed(weight, KEY, 1e-3, kind, out=scratch)
        timed[f"update_{kind}"] = lambda kind=kind: dispatch.update_(weight, [(KEY, 1e-6)], kind, rounding_key=ROUNDING)
    # What a step pays without these kernels: fresh normal noise in fp32 terms of the weight, then an addition.
    timed["torch_normal_add"] = lambda: scratch.copy_(weight).add_(torch.randn_like(weight), alpha=1e-3)
    return timed


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Of one call. One CPU thread is timed by its own clock, which other processes on the machine do not disturb."""
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def measure(size: int, rounds: int, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Median fractions of the copy's bandwidth, and that bandwidth in GB/s, for a `size` x `size` weight."""
    weight = (torch.randn(size, size, device=device) * 0.02).to(dtype)
    scratch = torch.empty_like(weight)
    copy = lambda: scratch.copy_(weight)  # noqa: E731
    timed = passes(weight, scratch)
    fractions: dict[str, list[float]] = {name: [] for name in timed}
    copies = []
    for warm in range(rounds + 1):
        for name, run in timed.items():
            reference, own = seconds(copy, device), seconds(run, device)
            if warm:
                copies.append(reference)
                fractions[name].append(reference / own)
    moved = 2 * weight.numel() * weight.element_size()
    result = {f"{name}_over_copy": statistics.median(values) for name, values in fractions.items()}
    return {"copy_gb_per_s": moved / statistics.median(copies) / 1e9, **result}


def compile_ahead(capability: int) -> list[dict[str, object]]:
    """What both kernels need in bf16: registers, shared memory, spilled bytes; and fused multiply-adds, which would
    change bits."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lowmem.kernels.triton_kernels import perturb_kernel, update_kernel
    from lowmem.kernels.triton_perturb import CHUNKS, LAUNCH

    sizes = {"cols": "i32", "stride": "i32", "programs_per_row": "i32"}
    perturb = {"weight": "*bf16", "plus": "*bf16", "minus": "*bf16", "rows": "*i64", **sizes}
    perturb |= {"k0": "u32", "k1": "u32", "eps": "fp32"}
    update = {"weight": "*bf16", "keys": "*i64", "coefs": "*fp32", "terms": "i32", **sizes}
    update |= {"keep": "fp32", "r0": "u32", "r1": "u32"}
    cases = []
    for kind, name in enumerate(("rademacher", "gaussian")):
        pair = {"KIND": kind, "GATHER": False, "PAIR": True, "CHUNKS": CHUNKS}
        cases.append((f"perturb_pair_{name}", perturb_kernel, perturb, pair))
        cases.append((f"update_{name}", update_kernel, update, {"KIND": kind, "CHUNKS": CHUNKS}))
    reports = []
    for title, kernel, signature, constants in cases:
        source = ASTSource(
            fn=kernel,
            signature=signature | dict.fromkeys(constants, "constexpr"),
            constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        )
        built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(LAUNCH))
        needs = {"shared": built.metadata.shared, "fused": built.asm["ptx"].count("fma."), **_usage(built.asm["cubin"])}
        reports.append({"kernel": title, "sm": capability, **needs})
    return reports


def _usage(cubin: bytes) -> dict[str, int]:
    """Registers per thread and bytes of stack and local memory (spills), as the CUDA tool in Triton's wheel says."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return {"registers": found["REG"], "spilled": found["STACK"] + found["LOCAL"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller weight and fewer rounds")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--aot", action="store_true", help="compile the Triton kernels, run nothing")
    arguments = parser.parse_args()
    if arguments.aot:
        reports = [report for capability in TARGETS for report in compile_ahead(capability)]
        for report in reports:
            print(*(f"{key}={value}" for key, value in report.items()), sep="  ")
        print(json.dumps({"kernels": reports, "spilled": sum(int(str(r["spilled"])) for r in reports)}))
        return
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    dtype = DTYPES[arguments.dtype]
    choice = dispatch.chosen(device, dtype)
    size, rounds = (4096, 5) if arguments.quick else (8192, 15)
    result = measure(size, rounds, device, dtype)
    print(f"{choice.name} ({choice.reason}), {size} x {size} {arguments.dtype}, {arguments.threads} thread(s)")
    for name, value in result.items():
        print(f"{name:28s} {value:8.2f}")
    machine = {
        "machine": platform.processor() or platform.machine(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
    }
    print(json.dumps({**result, "choice": choice.name, "reason": choice.reason, "size": size, **machine}))


if __name__ == "__main__":
    sys.exit(main())
