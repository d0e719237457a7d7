from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import lowmem
from lowmem.cli.app import app
from lowmem.errors import (
    BudgetError,
    CheckpointError,
    ConfigError,
    FormatError,
    Interrupted,
    LowmemError,
    OutOfMemoryError,
    QualityGateError,
)

DOORS = {
    "script": [str(Path(sys.executable).parent / "lowmem")],
    "module": [sys.executable, "-m", "lowmem"],
    "cli.py": [sys.executable, "cli.py"],
}


@pytest.mark.parametrize("door", DOORS)
def test_every_door_leads_to_the_same_command_line(door: str, repository: Path) -> None:
    done = subprocess.run([*DOORS[door], "--version"], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout == f"lowmem {lowmem.__version__}\n"
    assert done.stderr == ""


def test_help_needs_no_torch_and_half_a_second() -> None:
    code = (
        "import sys, time; start = time.process_time()\n"
        "from lowmem.cli.app import app\n"
        "try: app(['--help'], prog_name='lowmem')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'matplotlib', 'pydantic'} & set(sys.modules)\n"
        "sys.stderr.write(f'{time.process_time() - start} {heavy}')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, heavy = done.stderr.split(" ", 1)
    assert "Usage: lowmem" in done.stdout
    assert heavy == "set()"
    assert float(seconds) < 0.5  # of processor time, so that a busy machine does not matter


def test_the_checkout_installs_no_module_named_cli(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", "import cli"], cwd=tmp_path, capture_output=True, check=False)
    assert b"No module named 'cli'" in done.stderr


@pytest.mark.parametrize("args", [["tran"], ["train"], ["train", "x", "--no-such"], ["eval"], ["chat", "a", "b"]])
def test_usage_errors_end_with_2(run: Callable[..., Any], args: list[str]) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LowmemError("text"), 1),
        (CheckpointError("text"), 1),
        (FormatError("text"), 1),
        (ConfigError("text"), 2),
        (BudgetError("text"), 3),
        (OutOfMemoryError("text"), 4),
        (QualityGateError("text"), 5),
        (Interrupted("text"), 130),
    ],
)
def test_a_domain_error_is_a_message_and_its_exit_code(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, error: LowmemError, code: int
) -> None:
    def fail(**_: object) -> str:
        raise error

    monkeypatch.setattr("lowmem.jobs.init.init_yaml", fail)
    result = run("init")
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", "error: text\n")


def test_brackets_in_an_error_are_shown_as_they_are(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> str:
        raise ConfigError("run [red]path[/] :smile: [0]")

    monkeypatch.setattr("lowmem.jobs.init.init_yaml", fail)
    assert run("init").stderr == "error: run [red]path[/] :smile: [0]\n"


def test_ctrl_c_ends_with_130_and_no_traceback(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(**_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("lowmem.jobs.init.init_yaml", interrupt)
    result = run("init")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(**_: object) -> str:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("lowmem.jobs.init.init_yaml", bug)
    assert isinstance(CliRunner().invoke(app, ["init"]).exception, ZeroDivisionError)


def test_a_closed_pipe_is_silent(repository: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "lowmem", "init"], cwd=repository, stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 141


WAITING = """
import sys, time
from lowmem.cli import main
class Stdin:
    def isatty(self): return False
    def read(self):
        print("waiting", file=sys.stderr, flush=True)
        time.sleep(60)
sys.stdin, sys.argv = Stdin(), ["lowmem", "generate", "m"]
main()
"""


def test_an_interrupt_signal_ends_a_real_process_with_130_and_no_traceback() -> None:
    with subprocess.Popen([sys.executable, "-c", WAITING], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"waiting\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b""
    assert process.returncode == 130
