"""QuantLinear and QuantEmbedding against the definition: rotations, gradients, precision, dtypes, plans."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lowmem.quant.codec import KINDS, Kind, unpack
from lowmem.quant.linear import QuantEmbedding, QuantLinear, at_precision, empty_packed
from lowmem.quant.rotation import (
    Rotation,
    apply,
    apply_inverse,
    kronecker_schedule,
    mixed_schedule,
    no_rotation,
    random_hadamard,
)
from lowmem.quant.transform import transform
from tests.quant.packed import decibels, random_packed

FLOORS: dict[tuple[Kind, torch.dtype], float] = {
    **{(kind, torch.float32): 36.0 for kind in KINDS},
    **{(kind, torch.bfloat16): 36.0 for kind in KINDS},
    ("int8", torch.float32): 100.0,
}
"""dB of a rotated layer with one token against its dequantized weight in fp64: int8 activations, or bf16 in and out."""


def learned(n: int, *, seed: int, mixed: bool = False) -> Rotation:
    """A HARP rotation with random angles."""
    schedule = mixed_schedule(n) if mixed else kronecker_schedule(n)
    generator = torch.Generator().manual_seed(seed)
    angles = tuple(
        torch.randint(-127, 128, (n // b, b * (b - 1) // 2), generator=generator).to(torch.int8)
        for b in schedule.radices
    )
    scales = tuple(torch.full((n // b,), 0.004).half() for b in schedule.radices)
    return replace(random_hadamard(n, seed), mode="harp", schedule=schedule, angles=angles, angle_scales=scales)


def layer(kind: Kind = "s2", *, m: int = 96, n: int = 160, bias: bool = False) -> QuantLinear:
    values = torch.linspace(-1, 1, m) if bias else None
    return QuantLinear(random_packed(kind, m, n), learned(n, seed=1), random_hadamard(m, 2), bias=values)


def activations(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


ROTATIONS = [
    *(random_hadamard(n, 5) for n in (1, 2, 64, 576, 100)),
    *(learned(n, seed=5) for n in (8, 64, 576, 160)),
    *(learned(n, seed=5, mixed=True) for n in (34, 96, 100)),
]


@pytest.mark.parametrize("rotation", ROTATIONS, ids=lambda r: f"{r.mode}-{r.order}-{r.schedule.radices}")
def test_native_rotations_are_those_of_the_definition(rotation: Rotation) -> None:
    x = activations(3, rotation.order)
    forth, back = transform(rotation), transform(rotation, inverse=True)
    assert forth is not None
    assert back is not None
    torch.testing.assert_close(forth(x), apply(x, rotation), rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(back(x), apply_inverse(x, rotation), rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(back(forth(x)), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_equals_its_dequantized_weight(kind: Kind, dtype: torch.dtype) -> None:
    quantized = layer(kind, bias=True)
    weight, bias = quantized.dequantized().double(), quantized.bias
    assert bias is not None
    for tokens in (1, 40):
        x = activations(2, tokens, 160).to(dtype) if tokens > 1 else activations(1, 160).to(dtype)
        y = quantized(x)
        assert y.dtype == dtype
        assert decibels(x.double() @ weight.T + bias.double(), y) > FLOORS[kind, dtype]


def test_the_reference_choice_gives_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWMEM_KERNELS", "reference")
    quantized, x = layer("nested"), activations(1, 160)
    assert decibels(x.double() @ quantized.dequantized().double().T, quantized(x)) > 100


def test_without_rotations_the_weight_is_the_packed_one() -> None:
    packed = random_packed("s4", 6, 70)
    plain = QuantLinear(packed, no_rotation(70), no_rotation(6))
    assert torch.equal(plain.dequantized(), unpack(packed))
    assert plain(activations(0, 70)).shape == (0, 6)


def test_gradients_reach_the_input() -> None:
    quantized, x = layer("e8r"), activations(4, 160).requires_grad_()
    upstream = activations(4, 96)
    quantized(x).backward(upstream)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, upstream @ quantized.dequantized(), rtol=1e-4, atol=1e-4)
    assert not list(quantized.parameters())


@pytest.mark.parametrize("kind", ["nested", "e8r"])
def test_the_base_plane_is_the_two_bit_model(kind: Kind) -> None:
    model = nn.Sequential(layer(kind), nn.ReLU())
    quantized, x = model[0], activations(1, 160)
    full = model(x)
    two_bit = QuantLinear(quantized.packed.base_plane(), quantized.rotation("in"), quantized.rotation("out"))
    with at_precision(model, "base"):
        assert torch.equal(quantized(x), two_bit(x))
        assert not torch.equal(model(x), full)
    assert torch.equal(model(x), full)


def test_the_backward_pass_has_the_precision_of_the_forward_pass() -> None:
    quantized, x = layer("nested"), activations(1, 160).requires_grad_()
    with at_precision(quantized, "base"):
        y = quantized(x)
        expected = activations(1, 96) @ quantized.dequantized()
    y.backward(activations(1, 96))
    assert x.grad is not None
    torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-4)
    assert quantized.precision == "full"


def test_a_cast_leaves_scales_alone() -> None:
    quantized, x = layer("s3"), activations(1, 160)
    before = quantized(x)
    quantized.to(torch.bfloat16)
    assert quantized.scales.dtype == torch.float16
    assert torch.equal(quantized(x), before)


def test_a_state_dict_restores_the_layer() -> None:
    source, x = layer("e8"), activations(1, 160)
    empty = QuantLinear(replace(empty_packed("e8", (96, 160)), gain=0.25), learned(160, seed=9), random_hadamard(96, 9))
    empty(x)  # its rotations are expanded now, and must be made anew
    empty.load_state_dict(source.state_dict())
    assert torch.equal(empty(x), source(x))
    assert torch.equal(copy.deepcopy(source)(x), source(x))


def test_a_layer_can_be_planned() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        quantized = layer("nested")
        x = mode.from_tensor(torch.zeros(3, 160)).requires_grad_()
        y = quantized(x)
        y.sum().backward()
    assert y.shape == (3, 96)
    assert x.grad is not None
    assert x.grad.shape == (3, 160)


def test_rotations_of_another_order_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"orders 64 \(inputs\) and 96 \(outputs\) do not fit a weight of shape \(96, 1"
    ):
        QuantLinear(random_packed("s2", 96, 160), random_hadamard(64, 0), random_hadamard(96, 0))


@pytest.mark.parametrize("kind", ["int8", "int4", "s4"])
def test_an_embedding_reads_the_rows_of_its_table(kind: Kind) -> None:
    packed = random_packed(kind, 11, 70, group_size=64)
    table = QuantEmbedding(packed, dtype=torch.bfloat16)
    ids = torch.tensor([[0, 10, 3], [3, 3, 9]])
    assert torch.equal(table(ids), unpack(packed)[ids].bfloat16())
    assert table.packed.nbytes == packed.nbytes


def test_an_embedding_of_vectors_is_refused() -> None:
    with pytest.raises(ValueError, match="an embedding of kind 'e8': rows are read one by one; use int8, int4 or s4"):
        QuantEmbedding(random_packed("e8", 4, 64))


@pytest.mark.parametrize("tokens", [1, 4])
def test_layers_that_share_an_input_and_its_rotation_do_not_mix_it_up(tokens: int) -> None:
    """The native call keeps the last input that it rotated and rounded."""
    turned = learned(160, seed=1)
    layers = [QuantLinear(random_packed(kind, 96, 160), turned, no_rotation(96)) for kind in ("s2", "s2", "s4", "e8")]
    layers.append(QuantLinear(random_packed("s2", 96, 160), learned(160, seed=2), no_rotation(96)))
    x = activations(tokens, 160)
    alone = []
    for one in layers:
        one(activations(1, 160) + 1)  # another input in between
        alone.append(one(x))
    assert all(torch.equal(one(x), expected) for one, expected in zip(layers, alone, strict=True))
    x[0, 7] += 1  # in place
    assert not any(torch.equal(one(x), expected) for one, expected in zip(layers, alone, strict=True))


def test_equal_numbers_in_another_shape_are_another_input() -> None:
    narrow = QuantLinear(random_packed("s2", 8, 64), no_rotation(64), no_rotation(8))
    wide = QuantLinear(random_packed("s2", 8, 128), no_rotation(128), no_rotation(8))
    x = activations(2, 64)
    expected = copy.deepcopy(wide)(x.reshape(1, 128) + 0)
    narrow(x)
    assert torch.equal(wide(x.reshape(1, 128)), expected)


def test_a_layer_whose_scales_were_replaced_uses_the_new_ones() -> None:
    one = layer()
    x = activations(1, 160)
    before = one(x)
    one.scales = one.scales * 2
    torch.testing.assert_close(one(x), before * 2)
    one.scales.mul_(0.5)
    torch.testing.assert_close(one(x), before)


@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize("tokens", [3, 30])
def test_on_the_meta_device_a_layer_gives_shapes(rotated: bool, tokens: int) -> None:
    side = random_hadamard(64, 1) if rotated else no_rotation(64)
    layer = QuantLinear(random_packed("s2", 64, 64), side, side).to("meta")
    with torch.no_grad():
        assert layer(torch.empty(tokens, 64, device="meta")).shape == (tokens, 64)
