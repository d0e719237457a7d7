from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lowmem.errors import KernelUnavailable
from lowmem.kernels import native, reference
from lowmem.kernels.noise import Kind, stream_key
from tests.kernels.conftest import KINDS, SHAPES

KEY, OTHER, ROUNDING = (stream_key(3, step, 0, "w") for step in range(3))
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def spread(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Numbers from the subnormals of fp16 to beyond its largest."""
    generator = torch.Generator().manual_seed(0)
    size = 10 ** (torch.rand(shape, generator=generator) * 14 - 9)
    return (torch.randn(shape, generator=generator) * size).to(dtype)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_level_perturbs_with_the_bits_of_the_reference(level: str, kind: Kind, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        weight = spread(shape, dtype)
        for eps in (1e-3, -0.7, 1e-8):
            expected = reference.perturbed(weight, KEY, eps, kind)
            assert torch.equal(native.perturbed(weight, KEY, eps, kind), expected)
        plus, minus = native.perturbed_pair(weight, KEY, 0.1, kind)
        assert torch.equal(plus, reference.perturbed(weight, KEY, 0.1, kind))
        assert torch.equal(minus, reference.perturbed(weight, KEY, -0.1, kind))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_level_updates_with_the_bits_of_the_reference(level: str, kind: Kind, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        for terms in ([], [(KEY, 0.01)], [(KEY, 0.01), (OTHER, -0.3), (KEY, 1e-6)]):
            expected, moved = spread(shape, dtype), spread(shape, dtype)
            reference.update_(expected, terms, kind, rounding_key=ROUNDING, decay=0.1)
            native.update_(moved, terms, kind, rounding_key=ROUNDING, decay=0.1)
            assert torch.equal(moved, expected)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_level_draws_the_rows_of_the_reference(level: str, kind: Kind) -> None:
    weight = spread((9, 70), torch.bfloat16)
    for rows in (torch.tensor([[8, 0, 8], [1, 1, 1]]), slice(1, None, 3), slice(3, 3)):
        assert torch.equal(
            native.perturbed(weight, KEY, 0.1, kind, rows=rows),
            reference.perturbed(weight, KEY, 0.1, kind)[rows],
        )
        assert torch.equal(
            native.direction((9, 70), KEY, kind, rows=rows), reference.direction((9, 70), KEY, kind)[rows]
        )


def test_every_level_keeps_nan_and_infinity(level: str) -> None:
    for dtype in DTYPES:
        special = torch.tensor([float("nan"), float("inf"), -float("inf")] * 11).to(dtype)
        moved = special.clone()
        native.update_(moved, [(KEY, 0.1)], "gaussian", rounding_key=ROUNDING)
        for result in (moved, native.perturbed(special, KEY, 0.1, "gaussian")):
            torch.testing.assert_close(result, special, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("shape", [(1024, 1100), (1, 1_200_000)])
def test_threads_do_not_show(kind: Kind, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    weight = spread(shape, torch.bfloat16)

    def both() -> tuple[Tensor, Tensor]:
        moved = weight.clone()
        native.update_(moved, [(KEY, 0.01), (OTHER, 0.01)], kind, rounding_key=ROUNDING)
        return native.perturbed(weight, KEY, 0.1, kind), moved

    alone = both()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert all(torch.equal(a, b) for a, b in zip(both(), alone, strict=True))


def test_a_parameter_with_gradient_can_be_updated_and_keeps_no_graph() -> None:
    weight = torch.nn.Parameter(spread((4, 5), torch.float32))
    before = weight.detach().clone()
    native.update_(weight, [(KEY, 0.1)], "rademacher", rounding_key=ROUNDING)
    assert not torch.equal(weight.detach(), before)
    assert not native.perturbed(weight, KEY, 0.1, "rademacher").requires_grad
    assert not native.perturbed_pair(weight, KEY, 0.1, "rademacher")[0].requires_grad


def test_perturbed_writes_into_out() -> None:
    weight, out = spread((4, 5), torch.float32), torch.empty(4, 5)
    assert native.perturbed(weight, KEY, 0.1, "rademacher", out=out) is out
    assert torch.equal(out, reference.perturbed(weight, KEY, 0.1, "rademacher"))


def test_rows_of_a_larger_matrix_can_be_updated_in_place() -> None:
    whole = spread((6, 40), torch.bfloat16)
    expected = whole.clone()
    native.update_(whole[1:4, :30], [(KEY, 0.1)], "gaussian", rounding_key=ROUNDING)
    reference.update_(expected[1:4, :30], [(KEY, 0.1)], "gaussian", rounding_key=ROUNDING)
    assert torch.equal(whole, expected)


def test_fake_tensors_count_results_and_nothing_else() -> None:
    with FakeTensorMode():
        weight = torch.empty(6, 8, dtype=torch.bfloat16)
        plus, minus = native.perturbed_pair(weight, KEY, 0.1, "gaussian")
        assert (plus.shape, minus.dtype) == ((6, 8), torch.bfloat16)
        ids = torch.zeros(2, 3, dtype=torch.int64)
        assert native.perturbed(weight, KEY, 0.1, "rademacher", rows=ids).shape == (2, 3, 8)
        native.update_(weight, [(KEY, 0.1)], "gaussian", rounding_key=ROUNDING)


@pytest.mark.parametrize("row", [-1, 9])
def test_a_row_outside_the_weight_is_refused(row: int) -> None:
    with pytest.raises(IndexError, match=f"row {row} is outside a weight of 9 rows"):
        native.perturbed(torch.zeros(9, 4), KEY, 0.1, "gaussian", rows=torch.tensor([3, row]))


def test_columns_that_are_not_neighbours_are_refused() -> None:
    with pytest.raises(ValueError, match=r"has strides \(1, 4\): the native kernels need contiguous rows"):
        native.perturbed(torch.zeros(5, 4).T, KEY, 0.1, "gaussian")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kind='cauchy' is no direction"):
        native.perturbed(torch.zeros(5, 4), KEY, 0.1, "cauchy")  # type: ignore[arg-type]


def test_an_unknown_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWMEM_ISA", "mmx")
    with pytest.raises(KernelUnavailable, match="LOWMEM_ISA=mmx cannot run on this processor; use one of portable"):
        native.perturbed(torch.zeros(5, 4), KEY, 0.1, "gaussian")


def test_bits_do_not_change_when_subnormals_are_flushed() -> None:
    """In a process of its own: the switch belongs to the thread and would outlive the test."""
    code = """
import torch
from lowmem.kernels import native
weight = (torch.randn(4, 100) * 1e-5).half()
def both():
    moved = weight.clone()
    native.update_(moved, [(5, 1e-6)], "gaussian", rounding_key=6)
    return native.perturbed(weight, 5, 1e-6, "gaussian"), moved
usual = both()
assert torch.set_flush_denormal(True)
assert all(torch.equal(a.view(torch.int16), b.view(torch.int16)) for a, b in zip(both(), usual))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_level_replays_many_updates_with_the_bits_of_one_after_the_other(
    level: str, kind: Kind, dtype: torch.dtype
) -> None:
    updates = [([(KEY, 1e-3), (OTHER, -2e-3)], ROUNDING), ([], OTHER), ([(OTHER, 0.1)], KEY)]
    for shape in SHAPES:
        once, apart = spread(shape, dtype), spread(shape, dtype)
        native.replay_(once, updates, kind, decay=0.01)
        reference.replay_(apart, updates, kind, decay=0.01)
        assert torch.equal(once, apart)
