from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton has wheels for Linux on x86-64 only")


def run(script: Path, *arguments: str, **environment: str) -> str:
    """Output of a script in a process of its own: Triton reads its switches when a kernel is defined."""
    command = [sys.executable, "-W", "error", str(script), *arguments]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root, **environment}, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_interpreted_kernels_have_the_bits_of_the_reference() -> None:
    script = Path(__file__).with_name("interpret_triton.py")
    assert run(script, TRITON_INTERPRET="1", LOWMEM_KERNELS="triton") == "identical\n"


@pytest.mark.slow
def test_kernels_compile_for_gpus_without_spills_or_fused_multiply_adds(repository: Path) -> None:
    report = json.loads(run(repository / "examples" / "bench_perturb.py", "--aot").splitlines()[-1])
    kernels = report["kernels"]
    assert {kernel["sm"] for kernel in kernels} == {80, 86, 89, 90}
    assert all(kernel["spilled"] == 0 and kernel["fused"] == 0 and kernel["registers"] <= 64 for kernel in kernels)


@pytest.mark.slow
def test_the_bench_reports_fractions_of_copying(repository: Path) -> None:
    report = json.loads(run(repository / "examples" / "bench_perturb.py", "--quick").splitlines()[-1])
    assert report["choice"] == "native"
    assert report["perturb_rademacher_over_copy"] > report["torch_normal_add_over_copy"]
