"""A comparison is planned before it runs, and finished cells are never computed twice."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROTOCOLS = sorted((ROOT / "examples" / "protocols").glob("*.yaml"))

TEXT = """question: which is lower
metric: loss
decision: mean of three seeds
cpu_minutes: {quick: 1, session: 2}
common: {steps: 3}
tiers:
  quick: {seeds: [0]}
  session: {seeds: [0, 1, 2], steps: 5}
"""


@pytest.fixture(scope="module")
def protocol() -> ModuleType:
    spec = importlib.util.spec_from_file_location("protocol", ROOT / "examples" / "protocol.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["protocol"] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with one committed protocol, `demo`."""
    (tmp_path / "demo.yaml").write_text(TEXT)
    _git(tmp_path, "init", "-q")
    _commit(tmp_path)
    return tmp_path


def _git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments], cwd=folder, check=True)


def _commit(folder: Path) -> None:
    _git(folder, "add", "demo.yaml")
    _git(folder, "commit", "-q", "-m", "fix the question")


def test_a_tier_overrides_the_common_settings(protocol: ModuleType, repository: Path) -> None:
    opened = protocol.open_protocol("demo", "session", protocols=repository, cells=repository / "cells")
    assert opened.settings == {"steps": 5, "seeds": [0, 1, 2]}
    assert opened.commit is not None
    assert len(opened.commit) == 40


def test_an_edited_protocol_is_refused_except_in_the_quick_tier(protocol: ModuleType, repository: Path) -> None:
    (repository / "demo.yaml").write_text(TEXT.replace("steps: 5", "steps: 6"))
    with pytest.raises(protocol.ProtocolError, match=r"demo\.yaml is not committed as it stands"):
        protocol.open_protocol("demo", "session", protocols=repository, cells=repository / "cells")
    assert protocol.open_protocol("demo", "quick", protocols=repository, cells=repository / "cells").commit is None


@pytest.mark.parametrize("key", ["question", "metric", "decision", "cpu_minutes", "tiers"])
def test_a_protocol_says_everything(protocol: ModuleType, repository: Path, key: str) -> None:
    content = yaml.safe_load(TEXT)
    del content[key]
    (repository / "demo.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(protocol.ProtocolError, match=f"has no `{key}`"):
        protocol.open_protocol("demo", "quick", protocols=repository)


def test_an_unknown_tier_is_refused_with_those_there_are(protocol: ModuleType, repository: Path) -> None:
    with pytest.raises(protocol.ProtocolError, match="no tier full; it has quick, session"):
        protocol.open_protocol("demo", "full", protocols=repository)


def test_a_finished_cell_is_not_computed_again(protocol: ModuleType, repository: Path) -> None:
    opened = protocol.open_protocol("demo", "session", protocols=repository, cells=repository / "cells")
    first = opened.cell({"seed": 0, "method": "a"}, lambda: {"loss": 1.0})
    again = opened.cell({"method": "a", "seed": 0}, lambda: pytest.fail("computed twice"))
    assert again == first
    assert first["loss"] == 1.0
    assert opened.cell({"seed": 1, "method": "a"}, lambda: {"loss": 2.0})["loss"] == 2.0
    assert len(opened.cells()) == 2
    assert opened.cpu_minutes() >= 0


def test_an_edited_tier_starts_with_no_cells(protocol: ModuleType, repository: Path) -> None:
    cells = repository / "cells"
    protocol.open_protocol("demo", "session", protocols=repository, cells=cells).cell({}, lambda: {"loss": 1.0})
    (repository / "demo.yaml").write_text(TEXT.replace("steps: 5", "steps: 6"))
    _commit(repository)
    assert protocol.open_protocol("demo", "session", protocols=repository, cells=cells).cells() == []


def test_a_spread_wider_than_the_difference_is_undecided(protocol: ModuleType) -> None:
    assert protocol.verdict([1.0, 1.1, 0.9], [1.05, 1.15, 0.95]) == "undecided"
    assert protocol.verdict([1.0, 1.1, 0.9], [2.0, 2.1, 1.9]) == "better"
    assert protocol.verdict([2.0, 2.1, 1.9], [1.0, 1.1, 0.9]) == "worse"
    assert protocol.verdict([1.0], [2.0]) == "undecided"


WITHOUT_TRAINING = ("detector", "rescue", "rescue_stories", "quant")
"""Their spread is over texts, problems and matrices, hundreds of each; one seed fixes what is drawn."""


def test_every_protocol_has_a_quick_and_a_session_tier(protocol: ModuleType) -> None:
    for path in PROTOCOLS:
        protocol.open_protocol(path.stem, "quick")
        content = yaml.safe_load(path.read_text())
        session = content.get("common", {}) | content["tiers"]["session"]
        trains = path.stem not in WITHOUT_TRAINING
        assert len(session["seeds"]) >= 3 if trains else "seed" in session, path.name
        assert "full" in content["tiers"], path.name
        assert content["cpu_minutes"]["session"] <= 90, path.name
