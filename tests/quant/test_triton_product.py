from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton has wheels for Linux on x86-64 only")


@pytest.mark.slow
def test_interpreted_kernels_meet_the_definition(repository: Path) -> None:
    script = Path(__file__).with_name("interpret_triton_packed.py")
    switches = {"TRITON_INTERPRET": "1", "LOWMEM_KERNELS": "triton", "PYTHONPATH": str(repository)}
    command = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **switches}, check=False)
    assert done.stdout == "equal\n", done.stderr[-3000:]


@pytest.mark.slow
def test_kernels_compile_for_gpus_without_spills(repository: Path) -> None:
    command = [
        sys.executable,
        "-W",
        "error",
        str(repository / "examples" / "bench_quant_kernels.py"),
        "--aot",
        "--quick",
    ]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    kernels = json.loads(done.stdout.splitlines()[-1])["kernels"]
    assert {kernel["sm"] for kernel in kernels} == {80, 86, 89, 90}
    assert all(kernel["spilled"] == 0 and kernel["registers"] <= 180 for kernel in kernels)
