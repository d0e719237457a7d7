"""Live bytes: counted once, dropped at once, told apart by phase and component."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lowmem.models.loss import LossSums
from lowmem.plan.tracker import GRADIENTS, LOGITS, WEIGHTS, LiveBytes, PhasedLoss, quantization_statistics


def test_storages_count_while_they_live_and_views_cost_nothing() -> None:
    tracker = LiveBytes()
    with tracker:
        x = torch.ones(10, 10)
        view = x.t()[:3]
        assert tracker.current == 400
        y = x + 1
        assert tracker.current == 800
        del x
        assert tracker.current == 800  # the view still holds the storage
        del view
        assert tracker.current == 400
        del y
    assert tracker.current == 0


def test_fake_tensors_count_as_real_ones_do() -> None:
    def work() -> None:
        x = torch.ones(64, 64)
        for _ in range(3):
            x = torch.relu(x @ x) + 1

    real, fake = LiveBytes(), LiveBytes()
    with real:
        work()
    with FakeTensorMode(), fake:
        work()
    assert real.peaks == fake.peaks
    assert fake.current == 0


def test_granularity_rounds_every_storage_up() -> None:
    tracker = LiveBytes(granularity=512)
    with tracker:
        kept = [torch.zeros(1) for _ in range(3)]
        assert tracker.current == 3 * 512
    assert len(kept) == 3


def test_peaks_belong_to_their_phase() -> None:
    tracker = LiveBytes()
    with tracker:
        with tracker.phase("small"):
            torch.zeros(10)
        with tracker.phase("large"):
            torch.zeros(100)
            tracker.mark_part("inner")
            torch.zeros(50)
        assert tracker.peaks["small"] == 40
        assert tracker.peaks["large"] == 400
        assert tracker.places["large", "inner"].nbytes == 200


def test_a_phase_begins_with_what_is_alive() -> None:
    tracker = LiveBytes()
    with tracker:
        kept = torch.zeros(100)
        with tracker.phase("idle"):
            pass
    assert tracker.peaks["idle"] == kept.nbytes


def test_reset_forgets_peaks_and_keeps_what_lives() -> None:
    tracker = LiveBytes()
    with tracker:
        kept = torch.zeros(10)
        torch.zeros(1000)
        tracker.reset()
        assert tracker.peaks == {"outside": kept.nbytes}


def test_tied_parameters_count_once() -> None:
    model = nn.ModuleDict({"a": nn.Linear(8, 8, bias=False), "b": nn.Linear(8, 8, bias=False)})
    model["b"].weight = model["a"].weight
    tracker = LiveBytes()
    tracker.track_module(model)
    assert tracker.components == {WEIGHTS: 256}


def test_gradients_and_phases_of_a_step_are_told_apart() -> None:
    layer = nn.Linear(16, 32, bias=False)
    tracker = LiveBytes(vocabulary=32)
    tracker.track_module(layer)
    remove = tracker.watch_gradients(layer.parameters())

    def loss_fn(x: torch.Tensor) -> LossSums:
        logits = layer(x)
        return LossSums(logits.float().square().sum(-1), torch.ones(len(x)))

    with tracker:
        total = PhasedLoss(loss_fn, tracker)(torch.ones(4, 16)).total
        total.backward()
        after = torch.zeros(1)
    remove()
    assert tracker.components[GRADIENTS] == layer.weight.nbytes
    assert set(tracker.peaks) == {"outside", "forward", "backward", "update"}
    assert tracker.bills["forward"].components[LOGITS] >= 4 * 32 * 4
    assert tracker.bills["update"].components[GRADIENTS] == layer.weight.nbytes
    assert after.numel() == 1


def test_a_loss_without_gradients_has_no_backward() -> None:
    tracker = LiveBytes()
    with tracker, torch.no_grad():
        PhasedLoss(lambda x: LossSums(x, x), tracker)(torch.ones(3))
    assert set(tracker.peaks) == {"outside", "forward", "update"}


def test_statistics_of_quantized_layers_are_found() -> None:
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(64, 64, bias=False, compress_statistics=True, quant_type="nf4")
    layer.to("cpu")
    state = layer.weight.quant_state
    expected = {state.absmax.data_ptr(), state.state2.absmax.data_ptr(), state.state2.code.data_ptr()}
    found = {t.data_ptr() for t in quantization_statistics(layer)}
    assert expected <= found
    tracker = LiveBytes()
    tracker.track_module(layer)
    assert tracker.current >= 64 * 64 // 2 + state.absmax.nbytes + state.state2.absmax.nbytes
