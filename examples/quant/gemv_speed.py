"""A GEMV over rotating copies of a packed weight, in turn with a loop that only reads as many bytes of other copies.

What bounds such a product is memory, so its speed is a fraction of the loop's: with the same prefetch or without,
whichever is faster, in CPU seconds of one thread.
"""

from __future__ import annotations

import ctypes
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lowmem.kernels.build import find_compiler
from lowmem.quant.codec import Kind
from lowmem.quant.product import native_product
from quant.decode_speed import random_weight

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


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def gemv(kind: Kind, read: Callable[[torch.Tensor, int], int], *, total: int, rounds: int) -> dict[str, float]:
    """Fraction of the read-only loop (median over rounds) and GB/s of both, for 4096 x 11008."""
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
