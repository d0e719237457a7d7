"""Bytes and durations as text. Bytes are `int` everywhere else."""

from __future__ import annotations

import re

from lowmem.errors import ConfigError

_SCALE = {
    "": 1,
    "B": 1,
    "K": 2**10,
    "M": 2**20,
    "G": 2**30,
    "T": 2**40,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str | int) -> int:
    """Bytes of `"24GiB"`, `"24G"` (both binary), `"24GB"` (decimal) or a plain number of bytes.

    Raises `ConfigError` when the text is no size, or is not positive.
    """
    if isinstance(text, int):
        nbytes = text
    else:
        match = _SIZE.fullmatch(text)
        scale = _SCALE.get(match[2].upper()) if match else None
        if match is None or scale is None:
            raise ConfigError(f"{text!r} is not a size; write for example 24GiB, 8G, 500MB or a number of bytes")
        nbytes = int(float(match[1]) * scale)
    if nbytes <= 0:
        raise ConfigError(f"{text!r} is not a positive size; write for example 24GiB")
    return nbytes


def format_bytes(nbytes: float) -> str:
    """Human text in binary units: `format_bytes(1536) == "1.50 KiB"`."""
    sign, size = ("-", -float(nbytes)) if nbytes < 0 else ("", float(nbytes))
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{sign}{size:.0f} B" if unit == "B" else f"{sign}{size:.2f} {unit}"
        size /= 1024
    return f"{sign}{size:.2f} TiB"


def format_seconds(seconds: float) -> str:
    """`"42s"`, `"3m 05s"`, `"2h 07m"`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
