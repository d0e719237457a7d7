from __future__ import annotations

import getpass
import json
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lowmem.train import environment as module
from lowmem.train.environment import environment, source_commit


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "lowmem"\n')
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "pyproject.toml")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return tmp_path


def test_the_record_is_json_and_says_what_explains_a_number() -> None:
    record = json.loads(json.dumps(environment()))
    assert record["packages"]["torch"] == torch.__version__
    assert record["python"].endswith(platform.python_version())
    assert record["cpu"]["usable_cores"] >= 1
    assert record["ram_bytes"] > 2**28
    assert (record["cuda"] is not None) == torch.cuda.is_available()


def test_nothing_private_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWMEM_TEST_SECRET", "s3cr3t-in-the-environment")
    record = environment()
    text = json.dumps(record)
    for private in (str(Path.cwd()), str(Path.home()), sys.prefix, "s3cr3t", socket.gethostname()):
        if len(private) > 2:  # a host called "vm" is part of other words
            assert private not in text
    assert f'"{getpass.getuser()}"' not in text
    assert "/" not in text.replace(record["cpu"]["model"], ""), "a path"


def test_versions_are_read_without_importing_the_packages() -> None:
    program = (
        "import sys; from lowmem.train import environment as e; v = {p: e._version(p) for p in e.PACKAGES};"
        "assert v['transformers'] and 'transformers' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_package_that_is_not_installed_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGES", ("torch", "no-such-package-anywhere"))
    assert environment()["packages"]["no-such-package-anywhere"] is None


def test_the_commit_of_a_checkout_and_whether_it_was_modified(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    assert source_commit(checkout) == {"sha": head, "modified": False}
    (checkout / "untracked").touch()
    assert source_commit(checkout) == {"sha": head, "modified": False}
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert source_commit(checkout) == {"sha": head, "modified": True}


def test_another_project_is_not_named(checkout: Path) -> None:
    (checkout / "pyproject.toml").write_text('[project]\nname = "somebody-elses"\n')
    assert source_commit(checkout) is None


def test_an_installed_package_has_no_commit(tmp_path: Path) -> None:
    assert source_commit(tmp_path) is None


def test_a_checkout_without_a_commit_or_without_git_has_none(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path_factory.mktemp("empty")
    (empty / "pyproject.toml").write_text('name = "lowmem"\n')
    git(empty, "init", "--quiet")
    assert source_commit(empty) is None
    monkeypatch.setenv("PATH", os.devnull)
    assert source_commit(checkout) is None


def test_cpu_flags_are_those_that_choose_a_kernel(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: A: fast one\nflags\t\t: fpu avx2 fma avx512f serial_number\n")
    cpu = module._cpu(cpuinfo)
    assert (cpu["model"], cpu["flags"]) == ("A: fast one", ["fma", "avx2", "avx512f"])
    assert module._cpu(tmp_path / "absent")["flags"] == []


def test_the_memory_limit_of_a_container_is_recorded(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    assert module._ram_limit(limit) is None
    limit.write_text("max\n")
    assert module._ram_limit(limit) is None
    limit.write_text("8589934592\n")
    assert module._ram_limit(limit) == 2**33
