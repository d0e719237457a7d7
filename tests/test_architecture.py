"""The house rules that a reader relies on, checked on the source text."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lowmem"
LAYERS = [
    {"errors", "units", "events"},
    {"config"},
    {"kernels"},
    {"quant"},
    {"models", "data"},
    {"methods"},
    {"plan"},
    {"train", "generate"},
    {"evaluate"},
    {"serve", "batch", "diagnose", "report"},
    {"jobs"},
    {"cli"},
]
"""Lower first: a room imports from its own layer's room and from below, never from beside or above."""
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
TOGETHER = {frozenset({"models", "data"}), frozenset({"errors", "units"})}
"""Rooms of one layer that may know each other."""
WITHOUT_TORCH = ("errors", "units", "events", "config", "cli")
LONGEST_FILE = 450


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST, *, top_level: bool = False) -> Iterator[str]:
    """Modules imported anywhere, or only at module level outside `if TYPE_CHECKING`."""
    nodes = tree.body if top_level and isinstance(tree, ast.Module) else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    here = room(path)
    if here in ("__init__", "__main__", "hf"):
        return
    assert here in LEVEL, f"{here} has no layer; add it to the layout"
    for name in imports(ast.parse(path.read_text())):
        if not name.startswith("lowmem."):
            continue
        there = name.split(".")[1]
        if there == here or there not in LEVEL:
            continue
        allowed = LEVEL[there] < LEVEL[here] or frozenset({here, there}) in TOGETHER
        assert allowed, f"{path.relative_to(ROOT)} ({here}) imports {name}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST_FILE
    assert ast.get_docstring(ast.parse(path.read_text())), "every module says what it is"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_cli_writes_to_the_terminal(path: Path) -> None:
    if room(path) in ("cli", "__main__"):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{path}:{node.lineno} prints"
        if isinstance(node, ast.ImportFrom | ast.Import):
            assert not any(name.split(".")[0] in ("rich", "typer") for name in imports(node)), f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_swallowed_or_left_open(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or (
                isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            )
            assert not broad, f"{path}:{node.lineno} catches everything"
        if isinstance(node, ast.Raise) and "NotImplementedError" in ast.dump(node):
            raise AssertionError(f"{path}:{node.lineno} is a stub")


@pytest.mark.parametrize(
    "path", [p for p in sources() if room(p) in WITHOUT_TORCH], ids=lambda path: str(path.relative_to(ROOT))
)
def test_config_and_cli_import_no_torch_at_module_level(path: Path) -> None:
    heavy = {"torch", "transformers", "peft", "datasets", "matplotlib", "accelerate"}
    found = {name.split(".")[0] for name in imports(ast.parse(path.read_text()), top_level=True)}
    assert not found & heavy


def test_config_and_cli_load_without_torch() -> None:
    names = ["lowmem.config.load", "lowmem.cli", "lowmem.events"]
    program = f"import sys; import {', '.join(names)}; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_top_level_is_the_documented_one() -> None:
    for name in ("pyproject.toml", "lowmem", "cli.py", "configs", "tests", "examples", "README.md", "Makefile"):
        assert (ROOT / name).exists(), name
    for name in ("constraints.txt", "LICENSE", "CHANGELOG.md", "docs"):
        assert (ROOT / name).exists(), name


def test_text_files_name_no_machine() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    roots = ["/" + "work/", "/" + "root/", "/" + "farm/"]
    for name in filter(None, tracked.split("\0")):
        path = ROOT / name
        if path.is_symlink() or not path.is_file() or path.suffix in (".safetensors", ".png"):
            continue
        text = path.read_text(errors="replace")
        assert not any(root in text for root in roots), name
