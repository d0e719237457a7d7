"""The verb as a person meets it: what reaches the job, what is shown, how it ends; and a kill of the real process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowmem.config.quantize import QuantizeConfig
from lowmem.errors import Interrupted, QualityGateError
from lowmem.evaluate.gate import Closeness, GateReport, Sample
from lowmem.events import BlockCoded, Sink
from lowmem.jobs.quantize_result import QuantizeReport
from lowmem.plan.quantizing import QuantizingBill

CLOSE = Closeness(tokens=10, divergence=0.0123, loss_before=2.0, loss_after=2.1, agreement=0.9)
GATE = GateReport(CLOSE, (Sample("p", "a", "none"),), (Sample("p", "", "empty"),), ())
REPORT = QuantizeReport(Path("out"), 4.03, 5.5, 2**20, 10**6, 61.0, GATE, (), {})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the job was asked for by the last call; set `raises` to make it fail."""
    seen: dict[str, Any] = {}

    def quantize(config: QuantizeConfig, *, sink: Sink, **options: Any) -> QuantizeReport:
        seen.update(config=config, **options)
        sink(BlockCoded(1, 2, 0.00123, 65.0))
        sink(BlockCoded(2, 2, 0.002, 0.0))
        if "raises" in seen:
            raise seen["raises"]
        return REPORT

    monkeypatch.setattr("lowmem.jobs.quantize.quantize", quantize)
    return seen


def test_options_become_keys_and_the_rest_is_key_value(run: Callable[..., Any], asked: dict[str, Any]) -> None:
    words = ["--bits", "2", "--dataset", "add", "--tokens", "99", "--recover", "7", "-o", "there", "--force"]
    assert run("quantize", "m", *words, "gate.max_divergence=0.2", "calibration.max_length=64").exit_code == 0
    config = asked["config"]
    assert (config.model, config.bits, config.output, config.recover.steps) == ("m", 2, "there", 7)
    assert (config.calibration.tokens, config.calibration.max_length, config.gate.max_divergence) == (99, 64, 0.2)
    assert config.dataset[0].family == "add"
    assert (asked["force"], asked["overwrite"]) == (True, False)


def test_the_result_is_on_stdout_and_the_blocks_on_stderr(run: Callable[..., Any], asked: dict[str, Any]) -> None:
    result = run("quantize", "m")
    rows = [line.split() for line in result.stdout.splitlines() if line]
    assert ["perplexity", "7.389", "8.166"] in rows
    assert ["newly", "broken", "answers", "1", "of", "1"] in rows
    assert "4.03 bits per linear weight, 5.5 of the whole file; gate passed; 1m 01s" in result.stdout
    assert result.stderr.splitlines() == [
        "block 1/2: error 0.0012, in 1m 05s",
        "block 2/2: error 0.0020, coded before",
        "next: lowmem chat out",
    ]
    found = json.loads(run("quantize", "m", "--json").stdout)
    assert found["gate"]["closeness"]["perplexity_after"] == pytest.approx(8.166, abs=1e-3)
    assert found["gate"]["passed"]


@pytest.mark.parametrize(
    ("error", "code"), [(QualityGateError("failed its gate"), 5), (Interrupted("interrupted: 3 coded blocks"), 130)]
)
def test_it_ends_with_the_code_of_its_error(
    run: Callable[..., Any], asked: dict[str, Any], error: Exception, code: int
) -> None:
    asked["raises"] = error
    result = run("quantize", "m")
    assert result.exit_code == code
    assert f"error: {error}" in result.stderr


def test_a_config_that_cannot_be_ends_with_2(run: Callable[..., Any], asked: dict[str, Any]) -> None:
    assert run("quantize", "m", "--bits", "3", "--codec", "e8").exit_code == 2
    assert run("quantize", "m", "--bits", "7").exit_code == 2
    assert "config" not in asked


def test_the_plan_is_shown_and_a_budget_below_it_ends_with_3(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bill = QuantizingBill(2**20, 2**10, 2**11, 2**12, {"blocks": 2**21})
    monkeypatch.setattr("lowmem.jobs.quantize.plan_quantize", lambda config, sink: bill)
    result = run("quantize", "m", "--plan")
    assert result.exit_code == 0
    assert ["peak,", "blocks", "2.00", "MiB"] in [line.split() for line in result.stdout.splitlines()]
    assert json.loads(run("quantize", "m", "--plan", "--json").stdout)["peak"] == 2**21
    result = run("quantize", "m", "--plan", "--budget", "2MiB")
    assert result.exit_code == 3
    assert "error: quantizing needs" in result.stderr


@pytest.mark.slow
def test_a_process_killed_with_signal_9_goes_on_where_it_was(tmp_path: Path) -> None:
    words = ["quantize", "tiny-reasoner", "--dataset", "add", "--codec", "s4", "--tokens", "512", "num_threads=1"]
    words += ["feedback=nearest", "gate.tokens=128", "gate.prompt_count=1", "gate.max_new_tokens=8"]
    line = [sys.executable, "-m", "lowmem", *words, "-o", str(tmp_path / "out")]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as started:
        assert started.stderr is not None
        for text in started.stderr:
            if text.startswith("block 1/"):
                break
        started.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert "block 1/4: error" in done.stderr
    assert next(line for line in done.stderr.splitlines() if line.startswith("block 1/")).endswith("coded before")
    assert (tmp_path / "out" / "report.html").is_file()
