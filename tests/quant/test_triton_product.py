from __future__ import annotations

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
