"""Fitted rotations and the coding of one weight."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lowmem.errors import FormatError, NonFiniteError
from lowmem.quant.codec import Kind, unpack
from lowmem.quant.coders import coder_for
from lowmem.quant.format import digest, read_weight, weight_header, weight_tensors
from lowmem.quant.harp import FitOptions, fit, off_block_energy, round_angles
from lowmem.quant.hessian import damped
from lowmem.quant.ldlq import proxy_loss
from lowmem.quant.quantize import QuantizeOptions, dequantize, quantize_table, quantize_weight
from lowmem.quant.rotation import (
    apply,
    apply_inverse,
    draw_signs,
    no_rotation,
    pack_signs,
    random_hadamard,
    unpack_signs,
)

SHORT = FitOptions(steps=30, check=10)


def problem(m: int = 48, n: int = 80, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight with outlier columns and a low-rank part, and correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(m, n, generator=generator) * 0.02
    W[:, ::16] *= 6
    W += 0.05 * torch.randn(m, 2, generator=generator) @ torch.randn(2, n, generator=generator)
    mix = torch.randn(n, n, generator=generator) * torch.linspace(3, 0.1, n)
    return W, mix @ mix.T / n


def test_rotating_changes_neither_the_layer_nor_the_loss() -> None:
    W, H = (t.double() for t in problem())
    found = fit(W.float(), damped(H), coder_for("s2"), random_hadamard(48, 0), random_hadamard(80, 1), SHORT)
    rotated = apply(apply(W, found.right).T, found.left).T
    x = torch.randn(5, 80, generator=torch.Generator().manual_seed(2)).double()
    y = apply_inverse(apply(x, found.right) @ rotated.T, found.left)
    torch.testing.assert_close(y, x @ W.T, rtol=1e-12, atol=1e-13)
    moments = apply(apply(H, found.right).T, found.right)
    assert proxy_loss(rotated, moments) == pytest.approx(proxy_loss(W, H), rel=1e-10)


@pytest.mark.parametrize("kind", ["s2", "e8"])
@pytest.mark.parametrize("options", [SHORT, replace(SHORT, hbd=0.0, weighting="conditional")])
def test_a_fit_lowers_its_error_and_keeps_the_best_iterate(kind: Kind, options: FitOptions) -> None:
    W, H = problem()
    found = fit(W, damped(H), coder_for(kind), random_hadamard(48, 0), random_hadamard(80, 1), options)
    assert found.best < found.first
    assert found.best_step > 0
    assert any(bool(stage.any()) for stage in found.left.angles)


def test_a_fit_of_no_steps_is_the_randomized_hadamard_transform() -> None:
    W, H = problem()
    start = random_hadamard(80, 1)
    found = fit(W, damped(H), coder_for("s2"), random_hadamard(48, 0), start, FitOptions(steps=0))
    torch.testing.assert_close(apply(W, found.right), apply(W, start))


def test_fits_need_signs_and_stages() -> None:
    W, H = problem()
    with pytest.raises(ValueError, match="without signs"):
        fit(W, damped(H), coder_for("s2"), no_rotation(48), no_rotation(80), SHORT)
    with pytest.raises(ValueError, match="no stage to fit"):
        fit(torch.ones(3, 5), torch.eye(5), coder_for("s2"), random_hadamard(3, 0), random_hadamard(5, 0), SHORT)


@pytest.mark.parametrize("n", [8, 20, 64])
def test_off_block_energy_is_what_the_blocks_leave(n: int) -> None:
    H = torch.randn(n, n, generator=torch.Generator().manual_seed(n))
    blocks = [H[k : k + 8, k : k + 8] for k in range(0, n, 8)]
    torch.testing.assert_close(off_block_energy(torch.block_diag(*blocks)), torch.tensor(0.0), rtol=0, atol=1e-6)
    inside = sum(float(block.square().sum()) for block in blocks)
    assert float(off_block_energy(H)) + inside / n**2 == pytest.approx(float(H.square().sum()) / n**2, rel=1e-5)


def test_rounded_angles_are_close_and_zero_stays_zero() -> None:
    theta = torch.randn(4, 28, generator=torch.Generator().manual_seed(0)) * 0.1
    theta[2] = 0
    angles, scale = round_angles(theta)
    torch.testing.assert_close(angles.float() * scale.float()[:, None], theta, rtol=0, atol=0.002)
    assert not angles[2].any()


@pytest.mark.parametrize("kind", ["s2", "s3", "s4", "e8", "e8r", "nested"])
def test_the_reported_loss_is_that_of_the_decoded_weight(kind: Kind) -> None:
    W, H = problem()
    weight = quantize_weight(W, H, QuantizeOptions(kind=kind, candidates=("none", "rht", "harp"), fit=SHORT))
    H = damped(H)
    assert proxy_loss(W - dequantize(weight), H) / proxy_loss(W, H) == pytest.approx(weight.loss, rel=1e-3)
    assert weight.loss == min(report.loss for report in weight.reports)
    assert [report.name for report in weight.reports] == ["none", "rht", "harp"]
    assert all(report.loss < report.nearest_loss for report in weight.reports)


def test_more_bits_lose_less() -> None:
    W, H = problem()
    kinds: tuple[Kind, ...] = ("s2", "s3", "s4")
    losses = [quantize_weight(W, H, QuantizeOptions(kind=kind, candidates=("rht",))).loss for kind in kinds]
    assert losses[0] > 2 * losses[1] > 4 * losses[2]


def test_the_same_arguments_give_the_same_bits() -> None:
    W, H = problem()
    options = QuantizeOptions(kind="s2", fit=SHORT)
    one, two = quantize_weight(W, H, options), quantize_weight(W, H, options)
    assert {k: digest(t) for k, t in weight_tensors(one).items()} == {
        k: digest(t) for k, t in weight_tensors(two).items()
    }


def test_groups_have_scales_of_their_own() -> None:
    W, H = problem(16, 130)
    weight = quantize_weight(W, H, QuantizeOptions(kind="s2", candidates=("none",), group_size=64))
    assert weight.packed.scales.shape == (16, 3)
    assert weight.loss < quantize_weight(W, H, QuantizeOptions(kind="s2", candidates=("none",))).loss


def test_extreme_weights_are_coded() -> None:
    for W in (torch.zeros(8, 16), torch.full((8, 16), 1e-6), torch.full((8, 16), 1e4)):
        weight = quantize_weight(W, torch.eye(16), QuantizeOptions(kind="s4", candidates=("rht",)))
        assert bool(torch.isfinite(dequantize(weight)).all())
        assert float((dequantize(weight) - W).abs().max()) <= max(0.3 * float(W.abs().max()), 1e-2)


def test_what_cannot_be_coded_is_refused() -> None:
    W, H = problem()
    with pytest.raises(ValueError, match="no candidate rotation"):
        quantize_weight(W, H, QuantizeOptions(candidates=()))
    with pytest.raises(NonFiniteError, match="weight of shape"):
        quantize_weight(W * float("nan"), H, QuantizeOptions())
    with pytest.raises(ValueError, match="int4 or int8"):
        quantize_table(W, "s2")


@pytest.mark.parametrize(("kind", "limit"), [("int4", 0.012), ("int8", 5e-5)])
def test_tables_keep_their_rows_and_zeros(kind: Kind, limit: float) -> None:
    W = torch.randn(50, 100, generator=torch.Generator().manual_seed(0))
    W[7] = 0
    weight = quantize_table(W, kind)
    assert float((dequantize(weight) - W).square().mean()) < limit
    assert not dequantize(weight)[7].any()
    assert weight.packed.scales.shape == (50, 2)


@pytest.mark.parametrize("kind", ["s3", "nested"])
def test_a_weight_survives_its_tensors_and_header(kind: Kind) -> None:
    W, H = problem()
    weight = quantize_weight(W, H, QuantizeOptions(kind=kind, fit=SHORT))
    tensors, header = weight_tensors(weight), weight_header(weight)
    again = read_weight("q", header, tensors)
    assert torch.equal(unpack(again.packed), unpack(weight.packed))
    assert torch.equal(dequantize(again), dequantize(weight))
    assert again.reports == weight.reports
    payload = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert weight.nbytes == payload + 8
    with pytest.raises(FormatError, match="q is of format version 9"):
        read_weight("q", header | {"version": 9}, tensors)
    with pytest.raises(FormatError, match="q has no 'scales'"):
        read_weight("q", header, {key: t for key, t in tensors.items() if key != "scales"})


def test_signs_survive_their_bits() -> None:
    signs = draw_signs(77, 3)
    assert torch.equal(unpack_signs(pack_signs(signs), 77), signs)
    assert len(pack_signs(signs)) == 10
