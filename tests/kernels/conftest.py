"""The native kernels of every instruction level, that of AVX-512 with its instructions emulated where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowmem.kernels import native
from lowmem.kernels.build import LEVELS, build, load
from lowmem.kernels.noise import Kind, LowRank

EMULATED = Path(__file__).with_name("avx512_emulated.h")
KINDS: list[Kind] = ["rademacher", "gaussian", LowRank(1), LowRank(70)]
SHAPES = [(), (1, 1), (3, 7), (5, 16), (2, 127), (2, 129), (3, 5, 200), (5000,), (2, 4100), (40, 8), (0, 4), (4, 0)]


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test at one level after the other."""
    name: str = request.param
    if LEVELS.index(name) > native.library().lowmem_best_level():
        assert name == "avx512", f"this processor lacks {name}"
        emulated = load(build([f'-DLOWMEM_AVX512_HEADER="{EMULATED}"', "-Wno-psabi"]))
        monkeypatch.setattr(native, "library", lambda: emulated)
    monkeypatch.setenv("LOWMEM_ISA", name)
    return name
