"""What quantizing was planned to take against the bytes that were counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lowmem.config.load_quantize import load_quantize
from lowmem.errors import BudgetError
from lowmem.events import Event
from lowmem.jobs.quantize import plan_quantize, quantize
from lowmem.plan.quantizing import QuantizingBill, coding_bytes, require_room, table_bytes
from lowmem.plan.tracker import LiveBytes
from lowmem.quant.codec import Kind
from lowmem.quant.harp import FitOptions
from lowmem.quant.quantize import QuantizeOptions, quantize_table, quantize_weight
from lowmem.units import parse_bytes
from tests.models.tiny import save_tiny

TOLERANCE = 0.02


def counted(m: int, n: int, options: QuantizeOptions) -> int:
    """Bytes beside the weight and the summed moments, as `coding_bytes` counts them."""
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(m, n, generator=generator), torch.randn(2 * n, n, generator=generator)
    moments = given[1].T @ given[1] / len(given[1])
    tracker = LiveBytes()
    with tracker, torch.no_grad():
        W, H = given[0].clone(), moments.clone()
        with tracker.phase("code"):
            quantize_weight(W, H, options)
    return tracker.peaks["code"] - 4 * m * n


@pytest.mark.parametrize("kind", ["s2", "s3", "s4", "e8", "nested", "e8r"])
@pytest.mark.parametrize("shape", [(512, 128), (192, 384)])
def test_coding_a_layer_takes_what_was_planned(kind: Kind, shape: tuple[int, int]) -> None:
    plain = QuantizeOptions(kind=kind, candidates=("rht",), error_feedback=False, sweeps=0)
    assert coding_bytes(shape, plain, 4) == pytest.approx(counted(*shape, plain), rel=TOLERANCE)


def test_feedback_takes_eleven_squares_of_the_inputs() -> None:
    options = QuantizeOptions(kind="s4", candidates=("rht",), sweeps=1)
    assert coding_bytes((64, 384), options, 4) == pytest.approx(counted(64, 384, options), rel=TOLERANCE)


def test_the_fit_is_planned_on_fake_tensors() -> None:
    shape, fitted = (128, 64), FitOptions(steps=10, check=5)
    options = QuantizeOptions(kind="s2", candidates=("rht", "harp"), error_feedback=False, sweeps=0, fit=fitted)
    assert coding_bytes(shape, options, 4) == pytest.approx(counted(*shape, options), rel=TOLERANCE)


@pytest.mark.parametrize("shape", [(64, 256), (1024, 192), (8000, 200), (1000, 32), (12000, 192)])
def test_coding_a_table_takes_what_was_planned(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape)
    tracker = LiveBytes()
    with tracker, torch.no_grad():
        copy = weight.clone()
        with tracker.phase("table"):
            quantize_table(copy, "int8")
    assert table_bytes(shape, 4) == pytest.approx(tracker.peaks["table"] - 4 * copy.numel(), rel=TOLERANCE)


def ignore(_: Event) -> None:
    pass


def test_a_whole_run_stays_within_its_plan(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n".join(f"{n} the cat sat on the mat {n * 7}" for n in range(80)))
    given = {
        "model": str(save_tiny(tmp_path / "base", "llama")),
        "dataset": str(tmp_path / "text.txt"),
        "output": str(tmp_path / "out"),
        "rotation": "rht",
        "calibration": {"tokens": 512, "max_length": 64},
        "gate": {"tokens": 256, "prompt_count": 0, "max_divergence": 99.0, "max_perplexity_ratio": 1e9},
    }
    config = load_quantize(given, ["gate.min_agreement=0"])
    bill = plan_quantize(config, sink=ignore)
    report = quantize(config, sink=ignore)
    for phase in ("original", "blocks", "tables"):
        measured = report.memory[phase]["measured"]
        assert report.memory[phase]["predicted"] == bill.phases[phase]
        assert bill.phases[phase] == pytest.approx(measured, rel=TOLERANCE), phase
    more = plan_quantize(load_quantize(given, ["calibration.tokens=1024"]), sink=ignore)
    assert more.hidden > 1.5 * bill.hidden
    two = plan_quantize(load_quantize(given, ["workers=2"]), sink=ignore)
    assert two.fit == pytest.approx(2 * bill.fit, rel=0.5)


def test_a_bill_above_the_budget_is_refused_with_its_parts() -> None:
    bill = QuantizingBill(weights=100, hidden=20, moments=10, fit=50, phases={"blocks": 180})
    require_room(bill, 200, 20)
    with pytest.raises(
        BudgetError, match=r"quantizing needs 200 B of 199 B: weights 100 B, .* the process itself 20 B"
    ):
        require_room(bill, parse_bytes("199B"), 20)
