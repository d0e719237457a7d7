"""`lowmem doctor`: what this machine has, what is missing, and the commands that get it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowmem.cli import render
from lowmem.cli.arguments import AsJson
from lowmem.units import format_bytes

if TYPE_CHECKING:
    from lowmem.jobs.doctor import DoctorReport


def doctor(as_json: AsJson = False) -> None:
    """Show versions, devices, memory, kernels and models, and how to get what is missing."""
    from lowmem.jobs.doctor import examine

    report = examine()
    if as_json:
        render.result_json(report)
    else:
        _show(report)


def _show(report: DoctorReport) -> None:
    render.result(f"lowmem {report.version}, Python {report.python}, {report.platform}\n")
    devices = [[d.name, d.kind, format_bytes(d.total_bytes), format_bytes(d.free_bytes)] for d in report.devices]
    render.table(["device", "kind", "memory", "free"], devices)
    render.result("")
    render.table(["kernels", "in use", "why"], [[f"{k.device} {k.dtype}", k.name, k.reason] for k in report.kernels])
    render.result("")
    render.table(["package", "version", "for"], [[p.name, p.version or "missing", p.purpose] for p in report.packages])
    render.result("")
    render.table(["model", "state"], [[m.name, "ready" if m.ready else "missing"] for m in report.models])
    if report.missing:
        render.result("\nmissing, and what gets it:")
        for item in report.missing:
            render.result(f"  {item.what}: {item.command}")
    else:
        render.result("\nnothing is missing")
