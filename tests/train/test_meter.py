from __future__ import annotations

import mmap
import sys

import pytest
import torch

from lowmem.train.meter import MemoryMeter

MIB = 2**20
SLACK = 24 * MIB
"""What the interpreter and the allocator may take or return besides."""

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports resident memory and resets its peak")


def block(mebibytes: int) -> mmap.mmap:
    """Memory that is really there, straight from the system: an allocator may hand out what it had kept. A page counts
    as resident once it is written."""
    pages = mmap.mmap(-1, mebibytes * MIB)
    for page in range(0, len(pages), mmap.PAGESIZE):
        pages[page] = 1
    return pages


@linux
def test_the_peak_sees_an_allocation_that_is_gone_again() -> None:
    meter = MemoryMeter(torch.device("cpu"))
    meter.reset()
    before = meter.now()
    held = block(200)
    assert meter.now() - before == pytest.approx(200 * MIB, abs=SLACK)
    del held
    assert meter.now() - before < SLACK
    assert meter.peak() - before == pytest.approx(200 * MIB, abs=SLACK)


@linux
def test_after_a_reset_the_peak_starts_from_what_is_held_now() -> None:
    meter = MemoryMeter(torch.device("cpu"))
    block(200)
    before = meter.now()
    meter.reset()
    assert meter.peak() - before < SLACK
    held = block(50)
    assert meter.peak() - before == pytest.approx(50 * MIB, abs=SLACK)
    del held


@linux
def test_the_peak_never_falls_between_resets() -> None:
    meter = MemoryMeter(torch.device("cpu"))
    meter.reset()
    block(100)
    first = meter.peak()
    assert meter.peak() >= first >= meter.now()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_allocator_is_asked() -> None:
    meter = MemoryMeter(torch.device("cuda"))
    meter.reset()
    before = meter.now()
    held = torch.empty(8 * MIB, dtype=torch.uint8, device="cuda")
    assert meter.now() - before == held.nbytes
    del held
    assert (meter.now(), meter.peak()) == (before, before + 8 * MIB)
