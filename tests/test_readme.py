"""What the documentation says is what the repository does."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml


@pytest.fixture(scope="module")
def results(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("results", repository / "examples" / "results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_results_page_and_the_readme_table_are_generated_from_the_recorded_files(
    results: ModuleType, repository: Path
) -> None:
    assert (repository / "docs" / "results.md").read_text() == results.render()
    readme = (repository / "README.md").read_text()
    assert readme == results.in_readme(readme, results.readme_table())


def test_every_result_names_command_commit_and_machine(repository: Path) -> None:
    files = sorted((repository / "docs" / "results").glob("*.json"))
    assert files
    for file in files:
        result = json.loads(file.read_text())
        assert result["command"], file.name
        assert re.fullmatch(r"[0-9a-f]{40}", result["commit"]), file.name
        assert result["environment"]["cpu"]["model"], file.name


def test_the_readme_tree_names_what_is_there(repository: Path) -> None:
    readme = (repository / "README.md").read_text()
    tree = readme.split("## Where things are")[1].split("```")[1]
    rooms = {
        path.name for path in (repository / "lowmem").iterdir() if path.is_dir() and (path / "__init__.py").exists()
    }
    for room in sorted(rooms):
        assert f"  {room}/" in tree, f"README's tree does not mention lowmem/{room}/"
    for name in re.findall(r"^  (\w+)/", tree, flags=re.MULTILINE):
        assert name in rooms, f"README's tree mentions lowmem/{name}/, which is not there"


def test_every_verb_that_the_readme_uses_exists(repository: Path) -> None:
    readme = (repository / "README.md").read_text()
    verbs = set(re.findall(r"^lowmem (\w+)", readme, flags=re.MULTILINE))
    assert verbs >= {"init", "train", "eval", "chat", "doctor"}
    shown = subprocess.run(
        [sys.executable, "-m", "lowmem", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for verb in verbs:
        assert re.search(rf"\b{verb}\b", shown), verb


def test_every_relative_link_of_the_documentation_leads_somewhere(repository: Path) -> None:
    for page in [repository / "README.md", *(repository / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_make_knows_the_two_commands_and_ci_calls_the_readmes_test_command(repository: Path) -> None:
    readme, ci = (repository / "README.md").read_text(), (repository / ".ci" / "run").read_text()
    for target in ("demo", "test"):
        assert f"make {target}" in readme
        subprocess.run(["make", "-n", target], cwd=repository, check=True, capture_output=True)
    assert "make test" in ci


def test_every_shipped_config_is_commented(repository: Path) -> None:
    for path in sorted((repository / "configs").glob("*.yaml")):
        text = path.read_text()
        assert text.startswith("#"), f"{path.name} does not say what it is for"
        assert text.count("#") >= 6, f"{path.name} explains too few of its keys"
        assert yaml.safe_load(text)["output_dir"].startswith("runs/")
