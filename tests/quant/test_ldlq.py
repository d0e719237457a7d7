"""Error feedback against a slow twin and against plain rounding."""

from __future__ import annotations

import pytest
import torch

from lowmem.quant.codec import Kind
from lowmem.quant.coders import coder_for, row_scales
from lowmem.quant.hessian import SecondMoment, damped
from lowmem.quant.ldlq import conditional_variance, feedback, proxy_loss, round_ldlq, round_nearest


def problem(m: int = 24, n: int = 144, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(n, n, generator=generator) * torch.linspace(3, 0.1, n)
    return torch.randn(m, n, generator=generator), damped(mix @ mix.T / n)


def spread(W: torch.Tensor, kind: Kind) -> torch.Tensor:
    scales, gain = row_scales(W, kind)
    return scales.float() * gain


@pytest.mark.parametrize("width", [1, 8])
def test_the_factor_rebuilds_the_moments(width: int) -> None:
    _, H = problem()
    L = feedback(H, width).double() + torch.eye(144).double()
    D = torch.linalg.solve(L, torch.linalg.solve(L, H.double()).T)
    blocks = torch.arange(144) // width
    off = D * (blocks[:, None] != blocks)
    assert float(off.abs().max()) < 1e-5
    if width == 1:
        torch.testing.assert_close(D.diagonal().float(), conditional_variance(H), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["s2", "e8"])
def test_feedback_equals_a_slow_twin(kind: Kind) -> None:
    W, H = problem(6, 80)
    coder, scales = coder_for(kind), spread(W, kind)
    L = feedback(H, coder.width).double()
    Q = torch.zeros_like(W).double()
    for start in range(80 - coder.width, -1, -coder.width):
        block = slice(start, start + coder.width)
        point = W[:, block] + (W[:, block.stop :] - Q[:, block.stop :]) @ L[block.stop :, block]
        Q[:, block] = coder.nearest((point / scales).float())[0] * scales
    assert float((round_ldlq(W, H, coder, scales)[0] - Q).abs().max()) < 1e-5


@pytest.mark.parametrize("kind", ["s2", "s4", "e8", "nested"])
def test_with_white_inputs_feedback_is_plain_rounding(kind: Kind) -> None:
    W, _ = problem()
    coder, scales = coder_for(kind), spread(W, kind)
    with_feedback = round_ldlq(W, torch.eye(144), coder, scales)
    plain = round_nearest(W, coder, scales)
    assert torch.equal(with_feedback[0], plain[0])
    assert torch.equal(with_feedback[1], plain[1])


@pytest.mark.parametrize("kind", ["s2", "s3", "s4", "e8", "e8r", "nested"])
def test_feedback_beats_plain_rounding_and_sweeps_beat_feedback(kind: Kind) -> None:
    W, H = problem()
    coder, scales = coder_for(kind), spread(W, kind)
    plain = proxy_loss(W - round_nearest(W, coder, scales)[0], H)
    once = proxy_loss(W - round_ldlq(W, H, coder, scales)[0], H)
    swept = proxy_loss(W - round_ldlq(W, H, coder, scales, sweeps=2)[0], H)
    assert swept < once < plain


def test_columns_beside_whole_vectors_are_coded_too() -> None:
    W, H = problem(4, 77)
    Q, codes = round_ldlq(W, H, coder_for("e8"), spread(W, "e8"), sweeps=1)
    assert Q.shape == W.shape
    assert codes.shape == (4, 10, 2)
    assert proxy_loss(W - Q, H) < 0.2 * proxy_loss(W, H)


def test_moments_in_pieces_equal_moments_at_once() -> None:
    x = torch.randn(3, 10, 6, generator=torch.Generator().manual_seed(0))
    moment = SecondMoment(6)
    for part in x:
        moment.add_(part)
    rows = x.reshape(-1, 6).double()
    torch.testing.assert_close(moment.value().double(), rows.T @ rows / 30, rtol=1e-5, atol=1e-6)
    assert moment.nbytes == 144
    with pytest.raises(ValueError, match="no input was seen"):
        SecondMoment(6).value()


def test_damping_makes_any_moments_usable() -> None:
    assert torch.equal(damped(torch.zeros(4, 4)), torch.eye(4))
    torch.linalg.cholesky(damped(torch.ones(4, 4)))
