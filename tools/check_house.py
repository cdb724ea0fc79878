"""House rules that ruff cannot see: ``tools/check_house.py [ROOT]`` prints a line for each fault; the status is then 1.

In the package: docstrings of public functions name the errors they raise. In all tracked Python files: no edit of
``sys.path``, nothing imported from ``tests`` outside, one style of backticks in docstrings. Imports: ``lint-imports``.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

PACKAGE = "fairseq_star"
EXCEPTED = ()
# A single backtick, but for the roles of Sphinx, such as :func:`name`.
_SINGLE = re.compile(r"(?<![`:\w])`(?!`)[^`\n]+`(?!`)")


def faults(files: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each fault.

    Args:
        files: paths from the root of the repository -> their text, of all tracked Python files.
    """
    package = {path: text for path, text in files.items() if PurePosixPath(path).parts[0] == PACKAGE}
    for path, text in files.items():
        top, tree = PurePosixPath(path).parts[0], ast.parse(text, path)
        if path in package:
            yield from (f"{path}:{line}: {what}" for line, what in _raises(tree))
        if top in EXCEPTED:
            continue
        for line, what in (*_path_edits(tree), *_backticks(tree), *(() if top == "tests" else _test_imports(tree))):
            yield f"{path}:{line}: {what}"


def _path_edits(tree: ast.Module) -> Iterator[tuple[int, str]]:
    told = "edits sys.path; make what is shared a package"

    def is_path(node: ast.AST) -> bool:
        return isinstance(node, ast.Attribute) and node.attr == "path" and getattr(node.value, "id", "") == "sys"

    for node in ast.walk(tree):
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and is_path(node.func.value)
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        written = any(is_path(target) or is_path(getattr(target, "value", None)) for target in targets)
        taken = isinstance(node, ast.ImportFrom) and node.module == "sys" and "path" in [n.name for n in node.names]
        if called or written or taken:
            yield node.lineno, told


def _test_imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        if any(name.split(".")[0] == "tests" for name in names):
            yield node.lineno, "imports from tests; what others use too belongs elsewhere"


def _docstrings(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node, ast.get_docstring(node, clean=False) or ""


def _backticks(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node, text in _docstrings(tree):
        if found := _SINGLE.search(text):
            line = node.body[0].lineno + text[: found.start()].count("\n")
            yield line, f"{found[0]} in a docstring; names and code have two backticks on each side"


def _raises(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Public functions that raise a ``StarError`` themselves and do not say so."""
    private = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) or (isinstance(node, ast.ClassDef) and node.name.startswith("_"))
        for inner in ast.walk(node)
        if inner is not node
    }  # of a private class, or within a function
    for node, text in _docstrings(tree):
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_") or node in private or not text:
            continue
        raised = [ast.unparse(inner.exc) for inner in ast.walk(node) if isinstance(inner, ast.Raise) and inner.exc]
        if any(one.startswith("StarError(") for one in raised) and not re.search("StarError|[Rr]aises", text):
            yield node.lineno, f"{node.name} raises StarError, but its docstring does not say when"


def tracked(root: Path) -> dict[str, str]:
    """Paths and texts of all Python files that git tracks under ``root``."""
    listed = subprocess.run(["git", "ls-files", "-z", "*.py"], cwd=root, capture_output=True, text=True, check=True)
    paths = [path for path in listed.stdout.split("\0") if path and (root / path).is_file()]
    return {path: (root / path).read_text(encoding="utf-8") for path in paths}


if __name__ == "__main__":
    found = list(faults(tracked(Path(sys.argv[1] if len(sys.argv) > 1 else "."))))
    for sentence in found:
        print(sentence, file=sys.stderr)
    sys.exit(1 if found else 0)
