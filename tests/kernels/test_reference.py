from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from lowmem.kernels import noise as noise_module
from lowmem.kernels.noise import Kind, LowRank, direction, fp32, stream_key
from lowmem.kernels.reference import perturbed, perturbed_pair, stochastic_round, update_
from tests.oracles import noise as twin

KEY, OTHER, ROUNDING = (stream_key(3, step, 0, "w") for step in range(3))
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KINDS: list[Kind] = ["rademacher", "gaussian", LowRank(3)]
FORMATS = {torch.bfloat16: (7, -133), torch.float16: (10, -24)}


def spread(*shape: int) -> Tensor:
    """Numbers of many sizes, down to the subnormals of fp16 and up to its largest."""
    generator = torch.Generator().manual_seed(0)
    size = 10 ** (torch.rand(shape, generator=generator) * 12 - 8)
    return torch.randn(shape, generator=generator) * size


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_perturbed_is_the_rounded_fp32_sum(kind: Kind, dtype: torch.dtype) -> None:
    weight = spread(5, 200).to(dtype)
    z = direction(weight.shape, KEY, kind)
    plus, minus = perturbed_pair(weight, KEY, 1e-3, kind)
    assert torch.equal(plus, (weight.float() + z * fp32(1e-3)).to(dtype))
    assert torch.equal(minus, (weight.float() - z * fp32(1e-3)).to(dtype))
    assert torch.equal(perturbed(weight, KEY, 1e-3, kind), plus)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_perturbed_rows_are_the_rows_of_the_perturbed(dtype: torch.dtype) -> None:
    weight = spread(7, 33).to(dtype)
    ids = torch.tensor([[6, 0, 6], [1, 1, 1]])
    assert torch.equal(perturbed(weight, KEY, 0.1, "gaussian", rows=ids), perturbed(weight, KEY, 0.1, "gaussian")[ids])


def test_perturbed_leaves_the_weight_and_no_graph() -> None:
    weight = torch.nn.Parameter(spread(4, 4))
    before = weight.detach().clone()
    assert not perturbed(weight, KEY, 0.1, "rademacher").requires_grad
    assert torch.equal(weight, before)


def test_perturbed_writes_into_out() -> None:
    weight, out = spread(4, 5), torch.empty(4, 5)
    assert perturbed(weight, KEY, 0.1, "rademacher", out=out) is out
    assert torch.equal(out, perturbed(weight, KEY, 0.1, "rademacher"))


@pytest.mark.parametrize(
    "out",
    [torch.empty(4, 4), torch.empty(4, 5).half(), torch.empty(5, 4).T],
    ids=["narrow", "other dtype", "not contiguous"],
)
def test_an_out_that_cannot_hold_the_result_is_refused(out: Tensor) -> None:
    with pytest.raises(ValueError, match=r"out is .*; the result is contiguous torch.float32 \(4, 5\)"):
        perturbed(spread(4, 5), KEY, 0.1, "rademacher", out=out)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_update_equals_the_slow_twin(kind: Kind, dtype: torch.dtype) -> None:
    before = spread(3, 140).to(dtype)
    weight = before.clone()
    terms = [(KEY, 1e-3), (OTHER, -2e-3)]
    update_(weight, terms, kind, rounding_key=ROUNDING, decay=0.1)
    total = torch.zeros(3, 140)
    for key, coef in terms:
        total = total + direction(before.shape, key, kind) * fp32(coef)
    moved = before.float() * fp32(0.9) - total
    if dtype == torch.float32:
        assert torch.equal(weight, moved)
        return
    for row in range(3):
        for col in range(140):
            bits = twin.rounding_bits(ROUNDING, row, col)
            expected = twin.round_up_or_down(moved[row, col].item(), bits, *FORMATS[dtype])
            assert Fraction(weight[row, col].item()) == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_moves_without_terms_or_with_zero_coefficients(dtype: torch.dtype) -> None:
    weight = spread(4, 300).to(dtype)
    for terms in ([], [(KEY, 0.0), (OTHER, 0.0)]):
        moved = weight.clone()
        update_(moved, terms, "gaussian", rounding_key=ROUNDING)
        assert torch.equal(moved, weight)


def test_update_and_its_opposite_cancel_in_fp32() -> None:
    weight = torch.ones(4, 8)
    update_(weight, [(KEY, 0.25), (KEY, -0.25)], "rademacher", rounding_key=ROUNDING)
    assert torch.equal(weight, torch.ones(4, 8))


def test_update_works_on_transposed_weights() -> None:
    weight = spread(5, 7)
    transposed = weight.T.contiguous().T
    update_(weight, [(KEY, 0.1)], "gaussian", rounding_key=ROUNDING)
    update_(transposed, [(KEY, 0.1)], "gaussian", rounding_key=ROUNDING)
    assert torch.equal(weight, transposed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("x", [1.001, -0.0203, 3.1e-7, -5e-5])
def test_stochastic_rounding_is_unbiased_between_the_two_neighbours(dtype: torch.dtype, x: float) -> None:
    """n draws of a step times a coin of probability p: the mean is within 5 sqrt(p (1 - p) / n) of p; the fraction is
    held to 13 bits or more, which adds 2^-14."""
    n = 2**16
    rounded = stochastic_round(torch.full((16, n // 16), x), dtype, KEY).double()
    values = rounded.unique()
    assert len(values) == 2
    low, high = values.tolist()
    true = fp32(x)
    assert low < true < high
    p = (true - low) / (high - low)
    up = (rounded == high).double().mean().item()
    assert abs(up - p) < 5 * (p * (1 - p) / n) ** 0.5 + 2**-14


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_needs_no_rounding_stays(dtype: torch.dtype) -> None:
    exact = torch.cat([spread(5000).to(dtype).float(), torch.tensor([0.0, -0.0, float("inf"), -float("inf")])])
    rounded = stochastic_round(exact, dtype, KEY)
    assert torch.equal(rounded.float(), exact)
    assert torch.equal(torch.signbit(rounded), torch.signbit(exact))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_stays_nan(dtype: torch.dtype) -> None:
    nan = torch.full((200,), float("nan"))
    assert stochastic_round(nan, dtype, KEY).isnan().all()
    assert perturbed(nan.to(dtype), KEY, 0.1, "gaussian").isnan().all()


def test_small_steps_survive_in_bf16_only_stochastically() -> None:
    """Steps of 1e-3 of an ulp: rounding to nearest loses all of them, 1000 stochastic ones move by 1 ulp on average.

    Each weight moves by a sum of 1000 coins of probability 1e-3, so the mean over 4096 is within 5 / 64 of 1."""
    weight = torch.ones(4096, dtype=torch.bfloat16)
    z = direction(weight.shape, KEY, "rademacher")
    grows = z < 0
    for step in range(1000):
        update_(weight, [(KEY, 2**-7 * 1e-3)], "rademacher", rounding_key=stream_key(0, step, 0, "w", "rounding"))
    moved = (weight.float() - 1)[grows].mean().item() / 2**-7
    assert moved == pytest.approx(1, abs=5 / 45)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_tiles_do_not_show(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = spread(9, 1000).bfloat16()

    def both() -> tuple[Tensor, Tensor, Tensor]:
        moved = weight.clone()
        update_(moved, [(KEY, 0.1)], kind, rounding_key=ROUNDING)
        return perturbed(weight, KEY, 0.1, kind), moved, stochastic_round(weight.float() * 1.1, torch.float16, KEY)

    whole = both()
    monkeypatch.setattr(noise_module, "TILE", 256)
    assert all(torch.equal(a, b) for a, b in zip(both(), whole, strict=True))


def test_fake_weights_can_be_perturbed_and_updated() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        weight = torch.empty(6, 8, dtype=torch.bfloat16)
        update_(weight, [(KEY, 0.1)], "gaussian", rounding_key=ROUNDING)
        assert perturbed(weight, KEY, 0.1, "gaussian").dtype == torch.bfloat16


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"weight is torch.float64; perturbations work on float32, bfloat16 and float16"
    ):
        perturbed(torch.zeros(2, 2).double(), KEY, 0.1, "gaussian")
    with pytest.raises(ValueError, match=r"x is torch.float64; stochastic rounding starts from float32"):
        stochastic_round(torch.zeros(2).double(), torch.bfloat16, KEY)
    with pytest.raises(ValueError, match=r"cannot round stochastically to torch.int8; use bfloat16 or float16"):
        stochastic_round(torch.zeros(2), torch.int8, KEY)


def test_a_strided_weight_of_three_dimensions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"weight of shape \(4, 3, 2\) is not contiguous; call .contiguous\(\) first"):
        perturbed(torch.zeros(2, 3, 4).permute(2, 1, 0), KEY, 0.1, "gaussian")
