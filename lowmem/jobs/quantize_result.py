"""What quantizing ends with: the report, the record beside the model, and the moment the folder gets its name."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowmem.config.load import dump_run, load_run
from lowmem.config.quantize import QuantizeConfig
from lowmem.errors import ConfigError
from lowmem.evaluate.gate import GateReport
from lowmem.jobs.folder import write_atomically
from lowmem.jobs.quantize_source import RECORD
from lowmem.quant.quantize import QuantizedWeight
from lowmem.report.quantized import write_quantized_report

RECOVERED = "recovered"
"""The run that recovered a model, in its folder."""


@dataclass(frozen=True)
class Layer:
    """One coded layer. `loss`: tr(E H E^T) / tr(W H W^T); None for tables, which see no inputs."""

    name: str
    kind: str
    rotation: str
    shape: tuple[int, int]
    bits_per_weight: float
    loss: float | None
    seconds: float

    @classmethod
    def of(cls, name: str, weight: QuantizedWeight) -> Layer:
        m, n = weight.packed.shape
        return cls(
            name=name,
            kind=weight.packed.kind,
            rotation=weight.chosen,
            shape=(m, n),
            bits_per_weight=8 * weight.nbytes / (m * n),
            loss=weight.loss if weight.reports else None,
            seconds=sum(report.seconds for report in weight.reports),
        )


@dataclass(frozen=True)
class QuantizeReport:
    """What came out. Bits are true ones: everything in the file over the weights that it stands for."""

    folder: Path
    linear_bits: float
    """Of the linear layers: codes, scales and rotations."""
    file_bits: float
    """Of the whole file, over all parameters."""
    file_bytes: int
    parameters: int
    seconds: float
    gate: GateReport
    layers: tuple[Layer, ...]
    memory: dict[str, dict[str, int | None]]
    recovered: Path | None = None
    """The run whose adapter won back some of the loss."""
    unrecovered: GateReport | None = None
    """The gate before recovery, which then does not decide."""


def as_record(report: QuantizeReport) -> dict[str, Any]:
    """The report as JSON takes it, with what it derives."""
    record = dataclasses.asdict(report)
    for name, gate in (("gate", report.gate), ("unrecovered", report.unrecovered)):
        if gate is not None:
            closeness = gate.closeness
            record[name] |= {"passed": gate.passed, "broken_answers": gate.broken}
            record[name]["closeness"] |= {
                "perplexity_before": closeness.perplexity_before,
                "perplexity_after": closeness.perplexity_after,
            }
    return record


def write_record(packed: Path, config: QuantizeConfig, report: QuantizeReport, *, forced: bool) -> None:
    """quantize.json and report.html are in `packed`."""
    record = {"config": config.model_dump(mode="json"), "forced": forced, **as_record(report)}
    write_atomically(packed / RECORD, json.dumps(record, indent=1, default=str))
    write_quantized_report(packed / "report.html", record)


def refuse_output(output: Path, *, overwrite: bool) -> None:
    """Raises `ConfigError` when something is at `output` that may not be replaced; an empty folder is nothing."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / RECORD).is_file():
        raise ConfigError(
            f"--output {output} exists and is no quantized model (no {RECORD}), so it is not replaced; choose another"
        )
    if not overwrite:
        raise ConfigError(f"--output {output} holds a quantized model; replace it with --overwrite, or choose another")


def publish(packed: Path, run: Path, report: QuantizeReport) -> None:
    """The packed model has its name, and the run that recovered it is in it, and knows where its base went."""
    if report.recovered is not None and run.is_dir():
        config = load_run(run / "config.yaml").config
        places = {"model": str(report.folder.absolute()), "output_dir": str(report.recovered.absolute())}
        write_atomically(run / "config.yaml", dump_run(config.model_copy(update=places)))
        run.rename(packed / RECOVERED)
    _replace(packed, report.folder)


def _replace(fresh: Path, target: Path) -> None:
    """`target` is `fresh`; what was there is gone."""
    target.parent.mkdir(parents=True, exist_ok=True)
    old = target.with_name(f".partial-old-{target.name}")
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)
