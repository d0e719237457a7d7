from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lowmem.methods.rules.adafactor import Adafactor
from lowmem.methods.rules.adamw import AdamW
from lowmem.methods.rules.adamw8bit import AdamW8bit
from lowmem.methods.rules.base import Rule
from lowmem.methods.rules.lion import Lion
from lowmem.methods.rules.muon import Muon
from lowmem.methods.rules.sgd import Sgd
from lowmem.methods.rules.signum import Signum
from lowmem.methods.rules.slabs import SLAB, row_ranges
from lowmem.methods.rules.softsignum import SoftSignum
from lowmem.methods.rules.stosign import StoSign
from lowmem.plan.tracker import LiveBytes

ELEMENTWISE: list[Rule] = [
    AdamW(weight_decay=0.1),
    Sgd(momentum=0.9),
    Lion(),
    Signum(),
    StoSign(),
    SoftSignum(total_updates=4, hard_fraction=0.5),
]


def walk(rule: Rule, dtype: torch.dtype, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    state = rule.init(weight)
    for t in range(1, 6):
        grad = torch.randn(shape, generator=torch.Generator().manual_seed(t)).to(dtype)
        rule.update_(weight, grad, state, lr=0.01, t=t, rounding_key=t)
    return {"weight": weight, **state}


@pytest.mark.parametrize("rule", [*ELEMENTWISE, Muon(weight_decay=0.1)], ids=lambda rule: rule.title)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(23, 37), (9, 5, 7)], ids=str)
def test_slabs_change_no_bit_of_weights_and_state(
    rule: Rule, dtype: torch.dtype, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if rule.title == "Muon" and len(shape) > 2:
        shape = (37, 23)
    whole = walk(rule, dtype, shape)
    monkeypatch.setattr("lowmem.methods.rules.slabs.SLAB", 150)
    parts = walk(rule, dtype, shape)
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name


def test_slabs_cover_every_row_once_and_leave_vectors_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowmem.methods.rules.slabs.SLAB", 64)
    assert list(row_ranges(torch.zeros(10, 20))) == [(slice(i, min(i + 3, 10)), i) for i in (0, 3, 6, 9)]
    assert list(row_ranges(torch.zeros(10, 20), multiple=2)) == [(slice(i, i + 2), i) for i in (0, 2, 4, 6, 8)]
    assert list(row_ranges(torch.zeros(3, 1000))) == [(slice(i, i + 1), i) for i in range(3)]
    assert list(row_ranges(torch.zeros(1000))) == list(row_ranges(torch.zeros(()))) == [(..., 0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [48, 37])
def test_slabs_of_8_bit_state_end_where_blocks_end(
    dtype: torch.dtype, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (600, columns)
    whole = walk(AdamW8bit(), dtype, shape)
    monkeypatch.setattr("lowmem.methods.rules.slabs.SLAB", 5000)
    assert len(list(row_ranges(torch.zeros(shape), multiple=16 if columns == 48 else 256))) > 2
    parts = walk(AdamW8bit(), dtype, shape)
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name


def test_slabs_change_adafactor_by_the_order_of_sums_only(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = walk(Adafactor(), torch.float32, (23, 37))
    monkeypatch.setattr("lowmem.methods.rules.slabs.SLAB", 150)
    parts = walk(Adafactor(), torch.float32, (23, 37))
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, parts[name], rtol=1e-5, atol=1e-6)


def scratch(rule: Rule, shape: tuple[int, int]) -> int:
    """Bytes that an update needs beyond weight, gradient and state, on fake tensors."""
    tracker = LiveBytes(vocabulary=7)
    with FakeTensorMode(), tracker:
        weight, grad = torch.empty(shape, dtype=torch.bfloat16), torch.empty(shape, dtype=torch.bfloat16)
        state = rule.init(weight)
        before = tracker.current
        with tracker.phase("update"):
            rule.update_(weight, grad, state, lr=0.1, t=1, rounding_key=0)
    return max(peak.nbytes for (phase, _), peak in tracker.places.items() if phase == "update") - before


@pytest.mark.parametrize("rule", [*ELEMENTWISE, AdamW8bit(), Adafactor()], ids=lambda rule: rule.title)
def test_scratch_of_an_update_does_not_grow_with_the_tensor(rule: Rule) -> None:
    small, large = scratch(rule, (4096, 1024)), scratch(rule, (128 * 1024, 4096))
    assert large == pytest.approx(small, rel=0.01)  # but for the numbers of the rows
    assert small < 9 * 4 * SLAB  # the 16-bit rounding noise is drawn as 64-bit words
    assert large < 128 * 1024 * 4096 * 4 / 16  # not even one fp32 temporary of the whole embedding


def test_scratch_of_a_real_update_is_what_fake_tensors_predict() -> None:
    shape, rule, tracker = (2048, 1024), AdamW(), LiveBytes(vocabulary=7)
    with tracker:
        weight, grad = torch.zeros(shape, dtype=torch.bfloat16), torch.zeros(shape, dtype=torch.bfloat16)
        state = rule.init(weight)
        before = tracker.current
        with tracker.phase("update"):
            rule.update_(weight, grad, state, lr=0.1, t=1, rounding_key=0)
    measured = max(peak.nbytes for (phase, _), peak in tracker.places.items() if phase == "update") - before
    assert measured == pytest.approx(scratch(rule, shape), rel=0.02)
