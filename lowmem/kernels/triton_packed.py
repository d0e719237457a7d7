# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
# ruff: noqa: RET505
# Triton gives types to its functions and compiles only the branch that a constexpr takes, which needs the `else`.
"""Triton kernels for packed weights: GEMV, small GEMM, unpacking for prefill, and one stage of a rotation.

All read a tile of ROWS rows by one block of 64 columns as lowmem/quant/codec.py packs it; `_level` is that page's
table for one weight. Sums run in the order of the blocks, without atomics: two runs give the same bits.

Checked against the definition in Triton's interpreter, and compiled ahead of time for sm_80 to sm_90; not run on a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl

_BYTES0 = tl.constexpr((16, 16, 32, 32, 64, 16, 16, 16))
_BYTES1 = tl.constexpr((0, 8, 0, 0, 0, 0, 8, 16))
_S2, _S3, _S4, _INT4 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
_INT8, _E8, _E8R, _NESTED = tl.constexpr(4), tl.constexpr(5), tl.constexpr(6), tl.constexpr(7)


@triton.jit
def _vector_level(block, j, patterns, inside):
    """Level of weight `j` of e8 blocks that start at `block`."""
    index = tl.load(block + (j // 8), mask=inside, other=0).to(tl.int32)
    sign = tl.load(block + 8 + (j // 8), mask=inside, other=0).to(tl.int32)
    pattern = 4 * tl.load(patterns + index * 8 + j % 8, mask=inside, other=0).to(tl.int32) - 62
    seven = sign & 127
    parity = seven ^ (seven >> 4)
    parity = parity ^ (parity >> 2)
    parity = (parity ^ (parity >> 1)) & 1
    negative = tl.where(j % 8 == 7, parity, (sign >> (j % 8)) & 1)
    return pattern * (1 - 2 * negative) + 1 - 2 * (sign >> 7)


@triton.jit
def _level(first, second, j, levels, patterns, residual, residual_scale, inside, KIND: tl.constexpr):
    """fp32 levels of weights `j` of blocks whose planes start at `first` and `second`."""
    if KIND >= _E8:
        level = _vector_level(first, j, patterns, inside).to(tl.float32)
        if KIND == _NESTED:
            level += residual_scale * _vector_level(second, j, patterns, inside).to(tl.float32)
        if KIND == _E8R:
            row = tl.load(second + (j // 8), mask=inside, other=0).to(tl.int32)
            entry = tl.load(residual + row * 8 + j % 8, mask=inside, other=0).to(tl.int32) - 4
            level += residual_scale * entry.to(tl.float32)
        return level
    elif KIND == _INT8:
        return tl.load(first + j, mask=inside, other=128).to(tl.float32) - 128.0
    elif (KIND == _S4) | (KIND == _INT4):
        code = (tl.load(first + j % 32, mask=inside, other=0).to(tl.int32) >> (4 * (j // 32))) & 15
        return tl.load(levels + code, mask=inside, other=0).to(tl.float32)
    else:
        code = (tl.load(first + j % 16, mask=inside, other=0).to(tl.int32) >> (2 * (j // 16))) & 3
        if KIND == _S3:
            high = (tl.load(second + j % 8, mask=inside, other=0).to(tl.int32) >> (j // 8)) & 1
            code = code | (high << 2)
        return tl.load(levels + code, mask=inside, other=0).to(tl.float32)


@triton.jit
def _tile(
    plane0,
    plane1,
    scales,
    levels,
    patterns,
    residual,
    rows,
    block,
    m,
    n,
    group,
    gain,
    residual_scale,
    KIND: tl.constexpr,
):
    """Weights (ROWS, 64) of one block of `rows`, fp32, zero outside the matrix."""
    blocks = (n + 63) // 64
    j = tl.arange(0, 64)[None, :]
    column = block * 64 + j
    inside = (rows[:, None] < m) & (column < n)
    start = (rows.to(tl.int64) * blocks + block)[:, None]
    first = plane0 + start * _BYTES0[KIND]
    second = plane1 + start * _BYTES1[KIND]
    level = _level(first, second, j, levels, patterns, residual, residual_scale, inside, KIND)
    if group == 0:
        scale = tl.load(scales + rows, mask=rows < m, other=0.0)
    else:
        groups = (n + group - 1) // group
        scale = tl.load(scales + rows * groups + block * 64 // group, mask=rows < m, other=0.0)
    return tl.where(inside, level * (scale.to(tl.float32) * gain)[:, None], 0.0)


@triton.jit
def gemv_kernel(
    x,
    out,
    plane0,
    plane1,
    scales,
    levels,
    patterns,
    residual,
    m,
    n,
    group,
    gain,
    residual_scale,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
):
    """One token and ROWS rows a program: out[token, rows] = W[rows] x[token]."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1).to(tl.int64)
    total = tl.zeros((ROWS,), tl.float32)
    for block in range((n + 63) // 64):
        column = block * 64 + tl.arange(0, 64)
        part = tl.load(x + token * n + column, mask=column < n, other=0.0).to(tl.float32)
        weight = _tile(
            plane0, plane1, scales, levels, patterns, residual, rows, block, m, n, group, gain, residual_scale, KIND
        )
        total += tl.sum(weight * part[None, :], axis=1)
    tl.store(out + token * m + rows, total, mask=rows < m)


@triton.jit
def gemm_kernel(
    x,
    out,
    plane0,
    plane1,
    scales,
    levels,
    patterns,
    residual,
    tokens,
    m,
    n,
    group,
    gain,
    residual_scale,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """TOKENS tokens and ROWS rows a program, products on tensor cores in the type COMPUTE, sums in fp32."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    total = tl.zeros((TOKENS, ROWS), tl.float32)
    for block in range((n + 63) // 64):
        column = block * 64 + tl.arange(0, 64)
        at = token.to(tl.int64)[:, None] * n + column[None, :]
        part = tl.load(x + at, mask=(token[:, None] < tokens) & (column[None, :] < n), other=0.0)
        weight = _tile(
            plane0, plane1, scales, levels, patterns, residual, rows, block, m, n, group, gain, residual_scale, KIND
        )
        total = tl.dot(part.to(COMPUTE), tl.trans(weight).to(COMPUTE), total, input_precision="ieee")
    to = token.to(tl.int64)[:, None] * m + rows[None, :]
    tl.store(out + to, total, mask=(token[:, None] < tokens) & (rows[None, :] < m))


@triton.jit
def unpack_kernel(
    out,
    plane0,
    plane1,
    scales,
    levels,
    patterns,
    residual,
    m,
    n,
    group,
    gain,
    residual_scale,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
):
    """One block of ROWS rows a program, in the type of `out` (m, n): for prefill, before the vendor's product."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    block = tl.program_id(1)
    weight = _tile(
        plane0, plane1, scales, levels, patterns, residual, rows, block, m, n, group, gain, residual_scale, KIND
    )
    column = block * 64 + tl.arange(0, 64)
    to = rows.to(tl.int64)[:, None] * n + column[None, :]
    tl.store(out + to, weight.to(out.dtype.element_ty), mask=(rows[:, None] < m) & (column[None, :] < n))


@triton.jit
def rotate_stage_kernel(
    x,
    out,
    before,
    after,
    matrices,
    n,
    radix,
    stride,
    SHARED: tl.constexpr,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """COLUMNS outputs of one row and one stage: z'[c, j, s] = sum_i K[c, s][j, i] z[c, i, s].

    `before` multiplies inputs and `after` outputs (signs, fp32), where the flags say so.
    """
    row = tl.program_id(1).to(tl.int64) * n
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < n
    s = column % stride
    j = column // stride % radix
    c = column // (stride * radix)
    total = tl.zeros((COLUMNS,), tl.float32)
    for i in range(radix):
        source = (c * radix + i) * stride + s
        value = tl.load(x + row + source, mask=inside, other=0.0)
        if BEFORE:
            value *= tl.load(before + source, mask=inside, other=0.0)
        at = i * radix + j if SHARED else ((c * radix + i) * radix + j) * stride + s
        total += value * tl.load(matrices + at, mask=inside, other=0.0)
    if AFTER:
        total *= tl.load(after + column, mask=inside, other=0.0)
    tl.store(out + row + column, total, mask=inside)
