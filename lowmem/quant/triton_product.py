"""Launches the Triton kernels of `kernels.triton_packed` for a packed weight: products and rotations.

One to four tokens go through a GEMV, up to 64 through a GEMM on tiles that are unpacked in registers, more through
one unpacking of the layer and torch's product.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowmem.kernels.packed import KINDS
from lowmem.kernels.triton_packed import gemm_kernel, gemv_kernel, rotate_stage_kernel, unpack_kernel
from lowmem.quant.codec import BLOCK, LEVELS, PackedWeight, padded
from lowmem.quant.constant import constant
from lowmem.quant.lattice import patterns, residual_patterns

FEW, SOME = 4, 64
"""Tokens up to which the GEMV and the small GEMM serve."""
ROWS, TOKENS, COLUMNS = 16, 16, 256
LAUNCH: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": True}
GEMV_LAUNCH: dict[str, Any] = {**LAUNCH, "maxnreg": 128}
"""Left alone, ptxas holds the GEMV of e8r to 96 registers on sm_86 and sm_89 and spills two."""


def triton_product(x: Tensor, weight: PackedWeight, *, compute: torch.dtype = torch.float32) -> Tensor:
    """`x` (tokens, n) times the transposed weight: fp32 (tokens, m). `compute`: the type of a GEMM's factors."""
    if x.shape[0] > SOME:
        return (x.to(compute) @ unpack_triton(weight, compute).T).float()
    x, (m, n) = x.contiguous(), weight.shape
    out = torch.empty(x.shape[0], m, device=x.device)
    if x.shape[0] == 0 or m == 0:
        return out
    rows = triton.cdiv(m, ROWS)
    if x.shape[0] <= FEW:
        gemv_kernel[(rows, x.shape[0])](x, out, *_arguments(weight), m, n, *_numbers(weight), ROWS=ROWS, **GEMV_LAUNCH)
        return out
    types: dict[torch.dtype, Any] = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    gemm_kernel[(rows, triton.cdiv(x.shape[0], TOKENS))](
        *(x, out, *_arguments(weight), x.shape[0], m, n, *_numbers(weight)),
        ROWS=ROWS,
        TOKENS=TOKENS,
        COMPUTE=types[compute],
        **LAUNCH,
    )
    return out


def unpack_triton(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """`codec.unpack` in `dtype`."""
    m, n = weight.shape
    out = torch.empty(m, n, dtype=dtype, device=weight.scales.device)
    grid = (triton.cdiv(m, ROWS), padded(n) // BLOCK)
    unpack_kernel[grid](out, *_arguments(weight), m, n, *_numbers(weight), ROWS=ROWS, **LAUNCH)
    return out


def rotate_triton(
    x: Tensor, before: Tensor | None, stages: tuple[int, ...], matrices: Tensor, after: Tensor | None
) -> Tensor:
    """`kernels.packed.rotate`, one launch for each stage; signs are folded into the first or the last."""
    count, n = x.shape
    z, start = x.contiguous(), 0
    last = len(stages) // 3 - 1
    for t in range(last + 1):
        radix, stride, shared = stages[3 * t : 3 * t + 3]
        size = radix * radix if shared else n * radix
        out = torch.empty_like(z)
        first_signs, last_signs = before if t == 0 else None, after if t == last else None
        rotate_stage_kernel[(triton.cdiv(n, COLUMNS), count)](
            *(z, out, z if first_signs is None else first_signs, z if last_signs is None else last_signs),
            *(matrices[start : start + size], n, radix, stride),
            SHARED=bool(shared),
            BEFORE=first_signs is not None,
            AFTER=last_signs is not None,
            COLUMNS=COLUMNS,
            **LAUNCH,
        )
        z, start = out, start + size
    if last < 0:  # order 1: signs alone
        for signs in (before, after):
            z = z if signs is None else z * signs
    return z


def _arguments(weight: PackedWeight) -> tuple[Tensor, ...]:
    second = weight.planes[-1]
    device = weight.scales.device
    tables = (table.to(device) for table in _tables(weight.kind))
    return (weight.planes[0], second, weight.scales, *tables)


def _numbers(weight: PackedWeight) -> tuple[int, float, float, int]:
    return weight.group_size, weight.gain, weight.residual_scale, KINDS.index(weight.kind)


@constant
def _tables(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Levels by code (int8, 16), patterns and residual patterns as bytes (256, 8)."""
    levels = next((LEVELS[name] for name in LEVELS if name == kind and name != "int8"), (0,))
    codes = torch.tensor(levels, dtype=torch.int8)
    lattice = ((patterns() // 2 + 31) // 2).to(torch.uint8).contiguous()
    return codes, lattice, (residual_patterns() + 4).to(torch.uint8).contiguous()
