"""The tests' own structure: folders mirror the project's; what tests share is in ``tests.support``, for them alone."""

import ast
from pathlib import Path

from tests.support import ROOT

TESTS = ROOT / "tests"


def imported(path: Path) -> list[str]:
    """Full names of modules, and of what is taken from them."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{'.' * node.level}{node.module or ''}.{name.name}" for name in node.names]
    return names


def test_no_test_imports_another_one():
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in TESTS.rglob("*.py")
        for name in imported(path)
        if any(part == "conftest" or part.startswith("test_") for part in name.split("."))
    }
    assert not found


def test_nothing_else_imports_tests():
    folders = ("fairseq_star", "manifests", "benchmarks", "tools")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 100
    assert not {
        f"{path.relative_to(ROOT)}: {name}"
        for path in paths
        for name in imported(path)
        if name.split(".")[0] in ("tests", "conftest")
    }


def test_folders_are_the_projects():
    for path in TESTS.rglob("test_*.py"):
        room = Path(*path.parent.relative_to(TESTS).parts[:1])
        assert (ROOT / "fairseq_star" / room).is_dir() or (ROOT / room).is_dir(), path
