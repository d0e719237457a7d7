# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
# ruff: noqa: RET505, SIM300
# Triton gives types to its functions and compiles only the branch that a constexpr takes, which needs the `else`.
"""Triton kernels of the fused passes; `triton_perturb` launches them.

One program works on `CHUNKS` times 64 columns of one row as four tiles (chunk, lane), one for each word of a Philox
block: neighbouring lanes are neighbouring columns, so 16 lanes fill a memory sector and nothing is shuffled.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lowmem.kernels.noise import STREAM_GAUSSIAN, STREAM_RADEMACHER, STREAM_ROUNDING

_RADEMACHER = tl.constexpr(STREAM_RADEMACHER)
_GAUSSIAN = tl.constexpr(STREAM_GAUSSIAN)
_ROUNDING = tl.constexpr(STREAM_ROUNDING)


@triton.jit
def _philox(c0, c1, stream: tl.constexpr, k0, k1):
    c2 = tl.zeros_like(c0) + stream
    c3 = tl.zeros_like(c0)
    c1 = tl.zeros_like(c0) + c1
    k0 = k0.to(tl.uint32)
    k1 = k1.to(tl.uint32)
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, tl.full(c0.shape, 0xD2511F53, tl.uint32))
        high1 = tl.umulhi(c2, tl.full(c0.shape, 0xCD9E8D57, tl.uint32))
        low0 = c0 * 0xD2511F53
        low1 = c2 * 0xCD9E8D57
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def _half_words(chunk, lane, row, k0, k1, STREAM: tl.constexpr):
    """Of a block that serves 128 columns, the two words that serve the 64 columns of `chunk`."""
    w0, w1, w2, w3 = _philox((chunk >> 1) * 16 + lane, row, STREAM, k0, k1)
    odd = (chunk & 1) == 1
    return tl.where(odd, w2, w0), tl.where(odd, w3, w1)


@triton.jit
def _sign(word):
    return 1.0 - 2.0 * (word & 1).to(tl.float32)


@triton.jit
def _coins(word):
    """(3 popcount(x >> 4) + popcount(x & 15) - 44) / 8, from the number of ones in each nibble."""
    pairs = word - ((word >> 1) & 0x55555555)
    nibbles = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    octets = (nibbles + (nibbles >> 4)) & 0x0F0F0F0F
    ones = (octets * 0x01010101) >> 24
    whole = (3 * ones).to(tl.int32) - (2 * (nibbles & 15)).to(tl.int32) - 44
    return whole.to(tl.float32) * 0.125


@triton.jit
def _direction(chunk, lane, row, k0, k1, KIND: tl.constexpr):
    """z of columns 64 chunk + 16 w + lane, for w = 0..3."""
    if KIND == _RADEMACHER:
        w0, w1, w2, w3 = _philox(chunk >> 1, row, _RADEMACHER, k0, k1)
        odd = (chunk & 1) == 1
        low = tl.where(odd, w2, w0)
        high = tl.where(odd, w3, w1)
        return _sign(low >> lane), _sign(low >> (lane + 16)), _sign(high >> lane), _sign(high >> (lane + 16))
    else:
        w0, w1, w2, w3 = _philox(chunk * 16 + lane, row, _GAUSSIAN, k0, k1)
        return _coins(w0), _coins(w1), _coins(w2), _coins(w3)


@triton.jit
def _bfloat16(bits):
    return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _nearest(x, TYPE: tl.constexpr):
    """fp32 to TYPE, ties to even, by integers for bf16: conversions differ between GPU generations."""
    if TYPE == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)
        return _bfloat16(tl.where(x == x, rounded, tl.full(bits.shape, 0x7FC00000, tl.uint32)))
    else:
        return x.to(TYPE)


@triton.jit
def _stochastic(x, noise, TYPE: tl.constexpr):
    """fp32 to TYPE with 16 bits of `noise`; see `reference` for the two formats."""
    bits = x.to(tl.uint32, bitcast=True)
    if TYPE == tl.bfloat16:
        return _bfloat16(tl.where(x == x, bits + noise, tl.full(bits.shape, 0x7FC00000, tl.uint32)))
    elif TYPE == tl.float16:
        sign = bits & 0x80000000
        size = (bits ^ sign).to(tl.float32, bitcast=True)
        offset = tl.where(size < 0.00006103515625, 0.00006103515625, 0.0)
        shifted = ((size + offset).to(tl.uint32, bitcast=True) + (noise >> 3)) & 0xFFFFE000
        rounded = (shifted.to(tl.float32, bitcast=True) - offset).to(tl.uint32, bitcast=True) | sign
        finite = (bits & 0x7F800000) != 0x7F800000
        return tl.where(finite, rounded, bits).to(tl.float32, bitcast=True).to(tl.float16)
    else:
        return x


@triton.jit
def _perturb_tile(weight, plus, minus, source, target, col, cols, shift, PAIR: tl.constexpr):
    inside = col < cols
    w = tl.load(weight + source + col, mask=inside, other=0.0).to(tl.float32)
    tl.store(plus + target + col, _nearest(w + shift, plus.dtype.element_ty), mask=inside)
    if PAIR:
        tl.store(minus + target + col, _nearest(w - shift, plus.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["k0", "k1", "eps"])
def perturb_kernel(
    weight, plus, minus, rows, cols, stride, programs_per_row, k0: tl.uint32, k1: tl.uint32, eps,
    KIND: tl.constexpr, GATHER: tl.constexpr, PAIR: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """plus (and minus) <- round(W +- fl(eps z)), for row `program // programs_per_row` of the result."""
    program = tl.program_id(0)
    position = (program // programs_per_row).to(tl.int64)
    row = position
    if GATHER:
        row = tl.load(rows + position)
    chunk = (program % programs_per_row) * CHUNKS + tl.arange(0, CHUNKS)[:, None]
    lane = tl.arange(0, 16)[None, :]
    col = chunk.to(tl.int64) * 64 + lane
    z0, z1, z2, z3 = _direction(chunk.to(tl.uint32), lane.to(tl.uint32), row.to(tl.uint32), k0, k1, KIND)
    source = row * stride
    target = position * cols
    _perturb_tile(weight, plus, minus, source, target, col, cols, z0 * eps, PAIR)
    _perturb_tile(weight, plus, minus, source, target, col + 16, cols, z1 * eps, PAIR)
    _perturb_tile(weight, plus, minus, source, target, col + 32, cols, z2 * eps, PAIR)
    _perturb_tile(weight, plus, minus, source, target, col + 48, cols, z3 * eps, PAIR)


@triton.jit
def _update_tile(weight, start, col, cols, keep, total, noise):
    inside = col < cols
    w = tl.load(weight + start + col, mask=inside, other=0.0).to(tl.float32)
    moved = w * keep - total
    tl.store(weight + start + col, _stochastic(moved, noise, weight.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["terms", "keep", "r0", "r1"])
def update_kernel(
    weight, keys, coefs, terms, cols, stride, programs_per_row, keep, r0: tl.uint32, r1: tl.uint32,
    KIND: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """W <- round(fl(W keep) - sum_j fl(coef_j z_j)); `keys` (terms, 2) int64 holds low and high words."""
    program = tl.program_id(0)
    row = (program // programs_per_row).to(tl.int64)
    chunk = (program % programs_per_row) * CHUNKS + tl.arange(0, CHUNKS)[:, None]
    lane = tl.arange(0, 16)[None, :]
    col = chunk.to(tl.int64) * 64 + lane
    s0 = tl.zeros((CHUNKS, 16), tl.float32)
    s1 = tl.zeros((CHUNKS, 16), tl.float32)
    s2 = tl.zeros((CHUNKS, 16), tl.float32)
    s3 = tl.zeros((CHUNKS, 16), tl.float32)
    for term in range(terms):
        k0 = tl.load(keys + 2 * term).to(tl.uint32)
        k1 = tl.load(keys + 2 * term + 1).to(tl.uint32)
        coef = tl.load(coefs + term)
        z0, z1, z2, z3 = _direction(chunk.to(tl.uint32), lane.to(tl.uint32), row.to(tl.uint32), k0, k1, KIND)
        s0 += z0 * coef
        s1 += z1 * coef
        s2 += z2 * coef
        s3 += z3 * coef
    low, high = _half_words(chunk.to(tl.uint32), lane.to(tl.uint32), row.to(tl.uint32), r0, r1, _ROUNDING)
    start = row * stride
    _update_tile(weight, start, col, cols, keep, s0, low & 0xFFFF)
    _update_tile(weight, start, col + 16, cols, keep, s1, low >> 16)
    _update_tile(weight, start, col + 32, cols, keep, s2, high & 0xFFFF)
    _update_tile(weight, start, col + 48, cols, keep, s3, high >> 16)
