from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lowmem.errors import KernelUnavailable
from lowmem.kernels.build import FLAGS, build, cache_folder, find_compiler, load


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOWMEM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def compiler_script(folder: Path, body: str) -> str:
    """A stand-in for a compiler that answers --version and then runs `body`."""
    script = folder / "cxx"
    script.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo fake 1.0 && exit 0\n{body}\n')
    script.chmod(0o755)
    return str(script)


@pytest.mark.slow
def test_two_processes_may_build_at_once(cache: Path) -> None:
    code = "from lowmem.kernels.build import build, load; print(load(build()).lowmem_best_level())"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
    answers = [process.communicate()[0] for process in both]
    assert answers[0] == answers[1] != b""
    assert [path.suffix for path in (cache / "kernels").iterdir()] == [".so"]


def test_a_second_build_compiles_nothing(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    body = f'echo run >> {log}\nwhile [ "$1" != -o ]; do shift; done\necho library > "$2"'
    monkeypatch.setenv("CXX", compiler_script(tmp_path, body))
    assert build() == build()
    assert log.read_text() == "run\n"
    assert build(["-DOTHER"]) != build()
    assert log.read_text() == "run\nrun\n"


def test_bits_are_protected_by_the_flags() -> None:
    assert "-ffp-contract=off" in FLAGS
    assert not any(flag.startswith("-march") or flag == "-ffast-math" for flag in FLAGS)


def test_no_compiler_says_what_to_install(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(KernelUnavailable, match=r"none was found \(looked for g\+\+.*apt install g\+\+"):
        find_compiler()


def test_a_named_compiler_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(KernelUnavailable, match="looked for CXX=no-such-compiler"):
        find_compiler()


def test_a_failed_compilation_shows_the_compiler_and_leaves_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", compiler_script(tmp_path, "echo no vectors here >&2; exit 1"))
    with pytest.raises(KernelUnavailable, match="cxx could not compile the native kernels: no vectors here"):
        build()
    assert list((cache / "kernels").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LOWMEM_CACHE", str(tmp_path / "file"))
    with pytest.raises(KernelUnavailable, match=r"cannot be built in .*file.kernels: .*set LOWMEM_CACHE to a folder"):
        build()


def test_a_damaged_library_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "perturb-0.so"
    broken.write_bytes(b"no library")
    with pytest.raises(KernelUnavailable, match=r"perturb-0.so cannot be loaded: .*; delete it"):
        load(broken)


def test_the_cache_is_in_the_home_folder_unless_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOWMEM_CACHE", raising=False)
    monkeypatch.setenv("HOME", os.sep + "home-of-nobody")
    assert cache_folder() == Path("/home-of-nobody/.cache/lowmem")
