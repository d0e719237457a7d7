"""Builds the C++ kernels on first use and loads them.

The library lies in the user's cache under the digest of sources, flags and compiler version, so a change of any of
them builds anew, and no build is ever overwritten. `LOWMEM_CACHE` moves the cache, `CXX` names the compiler.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from ctypes import c_float, c_int, c_int64, c_uint64, c_void_p
from pathlib import Path

from lowmem.errors import KernelUnavailable

SOURCES = Path(__file__).parent / "cpu"
FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-pthread")
"""No contraction: a fused multiply-add would change bits. No -march: the levels have targets of their own."""
COMPILERS = ("g++", "clang++", "c++")
LEVELS = ("portable", "avx2", "avx512")


def cache_folder() -> Path:
    """Where built kernels are kept: `$LOWMEM_CACHE`, or ~/.cache/lowmem."""
    return Path(os.environ.get("LOWMEM_CACHE") or Path.home() / ".cache" / "lowmem")


def find_compiler() -> str:
    """Path of the C++ compiler. Raises `KernelUnavailable` when there is none."""
    named = os.environ.get("CXX")
    for name in (named,) if named else COMPILERS:
        path = shutil.which(name)
        if path:
            return path
    looked = f"CXX={named}" if named else ", ".join(COMPILERS)
    raise KernelUnavailable(
        f"the native kernels need a C++ compiler and none was found (looked for {looked}); install one"
        " (Debian and Ubuntu: apt install g++, Fedora: dnf install gcc-c++, macOS: xcode-select --install),"
        " or set LOWMEM_KERNELS=reference for the slower torch implementation"
    )


def build(extra_flags: Sequence[str] = (), *, name: str = "perturb") -> Path:
    """The shared library of the current `name`.cpp, compiled unless it is already in the cache.

    Safe for several processes at once: each compiles into a file of its own and renames it into place. Raises
    `KernelUnavailable` when the compiler fails or the cache cannot be written.
    """
    compiler = find_compiler()
    flags = (*FLAGS, *extra_flags)
    library = cache_folder() / "kernels" / f"{name}-{_digest(compiler, flags)}.so"
    if library.exists():
        return library
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=library.parent, suffix=".tmp")
    except OSError as error:
        raise KernelUnavailable(
            f"the native kernels cannot be built in {library.parent}: {error.strerror};"
            " set LOWMEM_CACHE to a folder that can be written"
        ) from error
    os.close(handle)
    made = Path(partial)
    try:
        _compile(compiler, flags, SOURCES / f"{name}.cpp", made)
        os.replace(made, library)
    finally:
        made.unlink(missing_ok=True)
    return library


def open_library(path: Path) -> ctypes.CDLL:
    """A built library. Its calls release the interpreter lock.

    Raises `KernelUnavailable` when the file is no library for this machine.
    """
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelUnavailable(f"{path} cannot be loaded: {error}; delete it to build it anew") from error


def load(path: Path) -> ctypes.CDLL:
    """The perturbation kernels with the types of their functions declared. Raises as `open_library`."""
    library = open_library(path)
    direction = (c_int, c_int, c_float)
    library.lowmem_best_level.argtypes = ()
    library.lowmem_best_level.restype = c_int
    pointers, sizes = (c_void_p,) * 4, (c_int64,) * 4
    library.lowmem_perturb.argtypes = (*pointers, *sizes, c_int, *direction, c_uint64, c_float, c_int, c_int)
    library.lowmem_perturb.restype = c_int64
    terms = (c_void_p, c_void_p, c_int64)
    steps = (c_void_p, c_void_p, c_int64)
    library.lowmem_update.argtypes = (
        *(c_void_p, c_int64, c_int64, c_int64, c_int),
        *(*direction, *terms, *steps, c_float, c_int, c_int),
    )
    library.lowmem_update.restype = None
    return library


def _digest(compiler: str, flags: Sequence[str]) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    digest = hashlib.sha256("\0".join((version, *flags)).encode())
    for source in sorted((*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h"))):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:20]


def _compile(compiler: str, flags: Sequence[str], source: Path, target: Path) -> None:
    command = [compiler, *flags, str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise KernelUnavailable(
            f"{compiler} could not compile the native kernels: {done.stderr.strip()[-800:]};"
            " set CXX to another compiler (GCC 9 or newer is known to work), or LOWMEM_KERNELS=reference"
        )
