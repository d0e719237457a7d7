"""Packed products of every kind, level and odd shape against the definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lowmem.errors import KernelUnavailable
from lowmem.kernels import packed as native
from lowmem.kernels.build import LEVELS, build
from lowmem.quant import product as module
from lowmem.quant.codec import KINDS, Kind, PackedWeight, unpack, unpack_levels
from lowmem.quant.constant import constant
from lowmem.quant.product import choose, native_product, product, reference
from tests.quant.packed import decibels, random_packed

SHAPES = [(1, 1, 0), (3, 100, 64), (5, 576, 0), (7, 320, 128), (4, 1536, 64), (2, 28672, 0)]
"""m, n, group size: a part of a block, an odd number of blocks, a last group of one block."""
FLOORS = {"exact": 100.0, "int8": 34.0}
"""Lower limits in dB against the definition in fp64, over all kinds, levels and shapes above 300 columns."""


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test at one level after the other; VNNI is emulated where it is missing."""
    name: str = request.param
    if LEVELS.index(name) > native.library().lowmem_packed_best_level():
        assert name == "avx512", f"this processor lacks {name}"
        emulated = native.declare(build(("-O1", "-DLOWMEM_EMULATE_VNNI"), name="packed"))
        monkeypatch.setattr(native, "library", lambda: emulated)
    monkeypatch.setenv("LOWMEM_ISA", name)
    return name


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """The int8 activations that the kernels make, and the scale of each block of 64; another writing of it."""
    blocks = torch.nn.functional.pad(x, (0, -x.shape[1] % 64)).reshape(x.shape[0], -1, 64)
    largest = blocks.abs().amax(-1, keepdim=True)
    codes = (blocks * torch.where(largest > 0, 127 / largest, 0.0)).round()
    return codes, largest / 127


@pytest.mark.parametrize("kind", KINDS)
def test_every_level_meets_the_definition(level: str, kind: Kind) -> None:
    for m, n, group in SHAPES:
        weight = random_packed(kind, m, n, group_size=group)
        for tokens in (1, 5):
            x = torch.randn(tokens, n, generator=torch.Generator().manual_seed(n))
            expected = x.double() @ unpack(weight).double().T
            assert decibels(expected, native_product(x, weight, exact=True)) > FLOORS["exact"]
            if n > 300:
                assert decibels(expected, native_product(x, weight, exact=False)) > FLOORS["int8"]


@pytest.mark.parametrize("kind", KINDS)
def test_int8_activations_are_summed_exactly(level: str, kind: Kind) -> None:
    for m, n, group in SHAPES:
        weight = random_packed(kind, m, n, group_size=group)
        x = torch.randn(2, n, generator=torch.Generator().manual_seed(n))
        codes, scales = rounded(x)
        image = (codes * scales).flatten(1)[:, :n]
        expected = image.double() @ unpack(weight).double().T
        assert decibels(expected, native_product(x, weight, exact=False)) > 100


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_activations_do_not_saturate(level: str, kind: Kind) -> None:
    weight = random_packed(kind, 16, 192)
    for plane in weight.planes:
        plane[:8] = 255
        plane[8:12] = 0
    signs = torch.where(torch.arange(192) % 3 == 0, -1.0, 1.0)
    single = torch.zeros(192)
    single[131] = -1
    x = torch.stack([torch.ones(192), -torch.ones(192), signs, single, torch.zeros(192)])
    expected = x.double() @ unpack(weight).double().T
    torch.testing.assert_close(native_product(x, weight, exact=False).double(), expected, rtol=1e-5, atol=1e-3)


def test_blocks_of_the_native_kernels_hold_the_levels_of_the_definition(level: str) -> None:
    """Single activations read single weights."""
    for kind in KINDS:
        weight = random_packed(kind, 3, 130)
        if weight.residual_scale:
            weight = weight.base_plane()
        read = native_product(torch.eye(130), weight, exact=False).T / (weight.scales.float() * weight.gain)
        assert torch.equal(read.round().to(torch.int32), unpack_levels(weight, 0).to(torch.int32))


def test_threads_share_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_packed("s2", 1030, 4096)
    x = torch.randn(1, 4096, generator=torch.Generator().manual_seed(0))
    alone = native_product(x, weight, exact=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(native_product(x, weight, exact=False), alone)


def test_spoiled_activations_stay_spoiled(level: str) -> None:
    weight = random_packed("s2", 2, 128)
    for bad in (float("nan"), float("inf")):
        x = torch.ones(1, 128)
        x[0, 70] = bad
        assert not native_product(x, weight, exact=False).isfinite().any()


def test_a_fake_product_allocates_the_result() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        weight = random_packed("nested", 6, 70)
        y = native_product(mode.from_tensor(torch.zeros(3, 70)), weight, exact=False)
    assert y.shape == (3, 6)
    assert y.dtype == torch.float32


def test_the_choice_is_recorded_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOWMEM_KERNELS", raising=False)
    cpu = torch.device("cpu")
    few = choose(cpu, "s2", 1)
    assert (few.kernel, few.activations) == ("native", "int8")
    assert "int8 activations" in few.reason
    assert choose(cpu, "int8", 1).activations == "exact"
    many = choose(cpu, "s2", 17)
    assert many.kernel == "reference"
    assert "17 tokens exceed 16" in many.reason
    monkeypatch.setenv("LOWMEM_ACTIVATIONS", "exact")
    assert choose(cpu, "s2", 1).activations == "exact"
    monkeypatch.setenv("LOWMEM_KERNELS", "reference")
    assert choose(cpu, "s2", 1).kernel == "reference"


def test_a_wrong_kind_of_activation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWMEM_ACTIVATIONS", "fp7")
    with pytest.raises(KernelUnavailable, match="LOWMEM_ACTIVATIONS=fp7 is no kind of activation; use exact or int8"):
        choose(torch.device("cpu"), "s2", 1)


def test_a_level_that_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWMEM_ISA", "avx9000")
    with pytest.raises(KernelUnavailable, match="LOWMEM_ISA=avx9000 cannot run packed products here; use one of port"):
        native.level()


def test_the_product_follows_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    weight: PackedWeight = random_packed("s3", 4, 90)
    x = torch.randn(20, 90, generator=torch.Generator().manual_seed(1))
    assert torch.equal(product(x, weight), reference(x, weight))
    called = []
    monkeypatch.setattr(module, "native_product", lambda *a, exact: called.append(exact) or reference(*a))
    product(x[:2], weight)
    assert called == [False]


def test_constants_made_during_a_plan_are_real() -> None:
    made = []

    @constant
    def ones(n: int) -> Tensor:
        made.append(n)
        return torch.ones(n)

    with FakeTensorMode():
        ones(2)
    assert torch.equal(ones(2), torch.ones(2))
    assert made == [2]


def test_constants_made_while_generating_serve_a_training_step() -> None:
    """In a process that answers first and trains later the table meets a backward pass, and a tracker of bytes."""

    @constant
    def ones(n: int) -> Tensor:
        return torch.ones(n)

    with torch.inference_mode():
        ones(2)
    x = torch.full((2,), 3.0, requires_grad=True)
    (x * ones(2)).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones(2))
