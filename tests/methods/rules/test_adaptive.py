"""Adafactor, 8-bit AdamW and NorMuon against other libraries and their own definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lowmem.methods.rules.adafactor import Adafactor
from lowmem.methods.rules.adamw import AdamW
from lowmem.methods.rules.adamw8bit import SMALL, AdamW8bit
from lowmem.methods.rules.base import Rule
from lowmem.methods.rules.blocks import BLOCK, SIGNED, UNSIGNED, Codec
from lowmem.methods.rules.muon import Muon
from lowmem.methods.rules.normuon import NorMuon
from lowmem.methods.rules.stored import Stored


def gradient(t: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Rows and columns of different sizes, as those of real layers are."""
    raw = torch.randn(shape, generator=torch.Generator().manual_seed(t))
    return raw * torch.linspace(0.1, 2.0, shape[-1])


def walk(rule: Rule, shape: tuple[int, ...], *, lr: float, steps: int = 10) -> torch.Tensor:
    weight = gradient(99, shape)
    state = rule.init(weight)
    for t in range(1, steps + 1):
        rule.update_(weight, gradient(t, shape), state, lr=lr, t=t, rounding_key=t)
    return weight


def theirs(make: Any, shape: tuple[int, ...], steps: int = 10) -> torch.Tensor:
    parameter = torch.nn.Parameter(gradient(99, shape))
    optimizer = make([parameter])
    for t in range(1, steps + 1):
        parameter.grad = gradient(t, shape)
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("shape", [(17, 9), (9, 17), (11,)], ids=str)
def test_relative_adafactor_is_torchs(shape: tuple[int, ...]) -> None:
    ours = walk(Adafactor(relative=True, weight_decay=0.1), shape, lr=0.02)
    expected = theirs(lambda p: torch.optim.Adafactor(p, lr=0.02, weight_decay=0.1), shape)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_adafactor_takes_steps_of_at_most_the_learning_rate_in_root_mean_square() -> None:
    before = gradient(99, (17, 9))
    after = walk(Adafactor(clip=1.0), (17, 9), lr=0.02, steps=1)
    assert float((after - before).square().mean().sqrt()) == pytest.approx(0.02, rel=0.01)
    halved = walk(Adafactor(clip=0.5), (17, 9), lr=0.02, steps=1)
    torch.testing.assert_close(halved - before, (after - before) / 2, rtol=1e-4, atol=1e-6)


def test_levels_are_those_of_bitsandbytes() -> None:
    from bitsandbytes.functional import create_dynamic_map

    torch.testing.assert_close(torch.tensor(SIGNED), create_dynamic_map(signed=True).cpu(), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(torch.tensor(UNSIGNED), create_dynamic_map(signed=False).cpu(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("count", [BLOCK * 3, BLOCK * 2 + 77, 5])
def test_codes_are_the_nearest_level_of_their_block(count: int) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, count)
    codec, codes = Codec(SIGNED, values.device), torch.zeros(count, dtype=torch.uint8)
    scales = torch.zeros(-(-count // BLOCK))
    codec.encode_(values.clone(), codes, scales)
    found = codec.decode(codes, scales)
    for block in range(len(scales)):
        part = values[block * BLOCK : (block + 1) * BLOCK]
        assert scales[block] == part.abs().max()
        distance = (part[:, None] / scales[block] - torch.tensor(SIGNED)).abs().amin(dim=1) * scales[block]
        error = (found[block * BLOCK : (block + 1) * BLOCK] - part).abs()
        torch.testing.assert_close(error, distance, rtol=1e-3, atol=1e-6 * float(scales[block]))


def test_a_positive_second_moment_never_becomes_zero() -> None:
    values = torch.full((BLOCK,), 1e-12)
    values[0], values[1] = 1.0, 0.0
    codec, codes, scales = Codec(UNSIGNED, values.device), torch.zeros(BLOCK, dtype=torch.uint8), torch.zeros(1)
    codec.encode_(values.clone(), codes, scales, keep_positive=True)
    found = codec.decode(codes, scales)
    assert float(found[1]) == 0
    assert bool((found[2:] > 0).all())


@pytest.mark.parametrize("shape", [(96, 64), (64, 100), (5000,)], ids=str)
def test_8_bit_adamw_follows_bitsandbytes_and_fp32_alike(shape: tuple[int, ...]) -> None:
    import bitsandbytes

    start, steps = gradient(99, shape), 20
    ours = walk(AdamW8bit(weight_decay=0.1), shape, lr=0.01, steps=steps) - start
    exact = walk(AdamW(weight_decay=0.1), shape, lr=0.01, steps=steps) - start
    other = theirs(lambda p: bitsandbytes.optim.AdamW8bit(p, lr=0.01, weight_decay=0.1), shape, steps) - start
    error, their_error = (float((moved - exact).norm() / exact.norm()) for moved in (ours, other))
    assert error < 0.05
    assert error < 1.05 * their_error
    assert float((ours - other).norm() / exact.norm()) < 0.05


@pytest.mark.parametrize("shape", [(64, 64), (70, 61), (4100,)], ids=str)
def test_8_bit_state_takes_two_bytes_and_eight_per_block(shape: tuple[int, ...]) -> None:
    weight = torch.zeros(shape)
    nbytes = sum(t.nbytes for t in AdamW8bit().init(weight).values())
    assert nbytes == 2 * weight.numel() + 8 * -(-weight.numel() // BLOCK)


def test_small_tensors_keep_state_in_fp32() -> None:
    small = torch.zeros(SMALL - 1)
    assert sum(t.nbytes for t in AdamW8bit().init(small).values()) == 8 * small.numel()
    shape = (40, 30)
    torch.testing.assert_close(walk(AdamW8bit(), shape, lr=0.01), walk(AdamW(), shape, lr=0.01), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(24, 8), (8, 24)])
def test_normuon_steps_as_far_as_muon_and_evens_out_its_rows(shape: tuple[int, int]) -> None:
    start = gradient(99, shape)
    muon, even = (walk(rule, shape, lr=0.01, steps=1) - start for rule in (Muon(), NorMuon()))
    assert float(even.norm()) == pytest.approx(float(muon.norm()), rel=1e-3)
    rows = even.norm(dim=1)
    assert float(rows.std() / rows.mean()) < 1e-3
    assert float(torch.nn.functional.cosine_similarity(even.flatten(), muon.flatten(), dim=0)) > 0.9


def test_normuon_remembers_the_size_of_its_rows() -> None:
    shape, rule = (6, 4), NorMuon(betas=(0.9, 0.5), nesterov=False)
    weight = torch.zeros(shape)
    state = rule.init(weight)
    expected, oracle = torch.zeros(6), Muon(momentum=0.9, nesterov=False, scale="operator")
    other, other_state = torch.zeros(shape), oracle.init(weight)
    for t in (1, 2):
        before = other.clone()
        oracle.update_(other, gradient(t, shape), other_state, lr=1.0, t=t, rounding_key=0)
        direction = (other - before) / (6 / 4) ** 0.5
        expected = 0.5 * expected + 0.5 * direction.square().mean(dim=1)
        rule.update_(weight, gradient(t, shape), state, lr=1.0, t=t, rounding_key=0)
    torch.testing.assert_close(state["row_sq"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rule", [AdamW8bit(), Adafactor()], ids=lambda rule: rule.title)
def test_state_of_another_shape_than_the_weight_is_left_as_it_is_by_a_smaller_dtype(
    rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowmem.methods.rules.stored.SLAB", 1000)
    stored = walk(Stored(rule, torch.bfloat16, elementwise=True), (96, 64), lr=0.01)
    torch.testing.assert_close(stored, walk(rule, (96, 64), lr=0.01), rtol=0, atol=0)
