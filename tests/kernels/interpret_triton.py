"""Run by test_triton.py with TRITON_INTERPRET=1: every Triton kernel against the reference, exactly."""

from __future__ import annotations

import torch

from lowmem.kernels import dispatch, reference, triton_perturb
from lowmem.kernels.noise import Kind, LowRank, stream_key

KEY, OTHER, ROUNDING = (stream_key(3, step, 0, "w") for step in range(3))
KINDS: list[Kind] = ["rademacher", "gaussian", LowRank(2)]


def compare(shape: tuple[int, ...], kind: Kind, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    size = 10 ** (torch.rand(shape, generator=generator) * 14 - 9)
    weight = (torch.randn(shape, generator=generator) * size).to(dtype)
    plus, minus = triton_perturb.perturbed_pair(weight, KEY, 1e-3, kind)
    expected = reference.perturbed_pair(weight, KEY, 1e-3, kind)
    assert torch.equal(plus, expected[0])
    assert torch.equal(minus, expected[1])
    assert torch.equal(triton_perturb.perturbed(weight, KEY, 1e-3, kind), expected[0])
    assert torch.equal(triton_perturb.direction(shape, KEY, kind), reference.direction(shape, KEY, kind))
    if len(shape) > 1 and shape[0] > 2:
        ids = torch.tensor([[0, 2], [2, 1]])
        assert torch.equal(triton_perturb.perturbed(weight, KEY, 1e-3, kind, rows=ids), expected[0][ids])
        assert torch.equal(
            triton_perturb.direction(shape, KEY, kind, rows=ids), reference.direction(shape, KEY, kind)[ids]
        )
    for terms in ([], [(KEY, 0.01), (OTHER, -0.3), (KEY, 1e-6)]):
        ours, theirs = weight.clone(), weight.clone()
        triton_perturb.update_(ours, terms, kind, rounding_key=ROUNDING, decay=0.1)
        reference.update_(theirs, terms, kind, rounding_key=ROUNDING, decay=0.1)
        assert torch.equal(ours, theirs)


def refused(weight: torch.Tensor, kind: Kind) -> str:
    try:
        triton_perturb.perturbed(weight, KEY, 0.1, kind)
    except ValueError as error:
        return str(error)
    return "not refused"


for shape in [(3, 2, 65), (1, 1100), (0, 4), (4, 0)]:
    for kind in KINDS:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            compare(shape, kind, dtype)
special = torch.tensor([float("nan"), float("inf"), -float("inf")])
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    weight = special.to(dtype)
    triton_perturb.update_(weight, [(KEY, 0.1)], "gaussian", rounding_key=ROUNDING)
    torch.testing.assert_close(weight.float(), special, equal_nan=True)
    again = triton_perturb.perturbed(weight, KEY, 0.1, "gaussian")
    torch.testing.assert_close(again.float(), special, equal_nan=True)
assert "the Triton kernels need contiguous rows" in refused(torch.zeros(5, 4).T, "gaussian")
assert "kind='cauchy' is no direction" in refused(torch.zeros(5, 4), "cauchy")  # type: ignore[arg-type]
assert dispatch.chosen(torch.device("cpu"), torch.float32).name == "triton"
assert torch.equal(
    dispatch.perturbed(torch.zeros(2, 3), KEY, 1.0, "gaussian"), dispatch.direction((2, 3), KEY, "gaussian")
)
print("identical")
