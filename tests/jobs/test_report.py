from __future__ import annotations

from pathlib import Path

import pytest

from lowmem.errors import ConfigError
from lowmem.jobs.report import subjects, write_comparison
from tests.batch.batches import run, write
from tests.report.runs import finished_run, write_run

TEXT = """jobs: {a: {command: 'echo "{\\"loss\\": 2}"'}, b: {command: echo why; exit 3}}"""


def test_folders_and_batches_are_compared_in_one_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, TEXT)
    run(path)
    folder = write_run(tmp_path / "run", finished_run())
    found = subjects([path, folder, folder])
    assert [(s.name, s.state) for s in found] == [
        ("a", "done"),
        ("b", "failed"),
        ("run (3)", "done"),
        ("run (4)", "done"),
    ]
    assert found[0].metrics == {"loss": 2.0}
    assert found[1].last_lines == ("why",)
    write_comparison(found, tmp_path / "deep/er/report.html", title="all")
    assert "3 of 4 done. Best loss: 1.5 by run (3)." in (tmp_path / "deep/er/report.html").read_text()


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing: is neither a run folder nor a batch file; name runs/NAME"):
        subjects([tmp_path / "nothing"])
