"""Run by test_triton_product.py with TRITON_INTERPRET=1: the Triton kernels against the definition."""

from __future__ import annotations

import torch

from lowmem.quant.codec import KINDS, unpack
from lowmem.quant.product import choose, product
from lowmem.quant.rotation import apply, apply_inverse, random_hadamard
from lowmem.quant.transform import transform
from lowmem.quant.triton_product import rotate_triton, triton_product, unpack_triton
from tests.quant.packed import decibels, random_packed
from tests.quant.test_linear import learned

FLOOR, FLOOR_HALF = 110.0, 40.0
"""Lower limits in dB against the definition in fp64."""

for kind in KINDS:
    for m, n, group in ((1, 1, 0), (19, 100, 64), (5, 192, 128)):
        weight = random_packed(kind, m, n, group_size=group)
        assert torch.equal(unpack_triton(weight, torch.float32), unpack(weight)), kind
        # Triton's interpreter does not round to bf16 as a GPU does, so the bits are not compared.
        assert decibels(unpack(weight), unpack_triton(weight, torch.bfloat16)) > FLOOR_HALF, kind
        for tokens in (0, 1, 5):
            x = torch.randn(tokens, n, generator=torch.Generator().manual_seed(n))
            y = triton_product(x, weight)
            assert y.shape == (tokens, m)
            if tokens:
                expected = x.double() @ unpack(weight).double().T
                assert decibels(expected, y) > FLOOR, (kind, decibels(expected, y))
                assert torch.equal(y, triton_product(x, weight))
                half = triton_product(x, weight, compute=torch.float16)  # the interpreter cannot multiply bf16
                assert decibels(expected, half) > FLOOR_HALF, (kind, tokens, decibels(expected, half))
weight = random_packed("s2", 3, 64)
x = torch.randn(65, 64, generator=torch.Generator().manual_seed(0))
assert decibels(x.double() @ unpack(weight).double().T, triton_product(x, weight)) > FLOOR
assert choose(x.device, "s2", 1).kernel == "triton"
assert torch.equal(product(x[:1], weight), triton_product(x[:1], weight))
for rotation in (random_hadamard(1, 1), random_hadamard(36, 1), learned(40, seed=1), learned(34, seed=1, mixed=True)):
    x = torch.randn(2, rotation.order, generator=torch.Generator().manual_seed(1))
    for inverse, definition in ((False, apply), (True, apply_inverse)):
        ready = transform(rotation, inverse=inverse, fast=False)
        assert ready is not None
        rotated = rotate_triton(x, ready.before, ready.numbers, ready.matrices, ready.after)
        torch.testing.assert_close(rotated, definition(x, rotation), rtol=1e-5, atol=2e-6)
print("equal")
