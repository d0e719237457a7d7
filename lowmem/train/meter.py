"""How much memory the process holds: the CUDA allocator on a GPU, resident memory on a CPU."""

from __future__ import annotations

from pathlib import Path

import torch


class MemoryMeter:
    """Bytes now and at the peak since `reset`. On Linux the kernel's own high-water mark is used and reset."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._peak = 0

    def reset(self) -> None:
        """The peak starts again from the memory held now."""
        self._peak = 0
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            _reset_high_water_mark()

    def now(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device)
        return _status_bytes("VmRSS")

    def peak(self) -> int:
        if self._device.type == "cuda":
            self._peak = max(self._peak, torch.cuda.max_memory_allocated(self._device))
        else:
            self._peak = max(self._peak, _status_bytes("VmHWM"), self.now())
        return self._peak


def _status_bytes(field: str) -> int:
    """A field of /proc/self/status in bytes; elsewhere the peak that getrusage reports (there is no current value)."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _reset_high_water_mark() -> None:
    """Writing 5 to clear_refs resets VmHWM; where /proc forbids it, the mark keeps the process's whole history."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        try:
            clear.write_text("5")
        except OSError:
            return
