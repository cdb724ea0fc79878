"""Each function of fairseq that is replaced is one that fairseq has, and is told in one place."""

import ast
import importlib
import re
from pathlib import Path

import fairseq_cli.train  # noqa: F401

import fairseq_star.fairseq_hooks

PACKAGE = Path(fairseq_star.fairseq_hooks.__file__).parents[1]
LISTED = re.findall(r"^``([\w.]+)`` ", fairseq_star.fairseq_hooks.__doc__, re.MULTILINE)
MODULES = {"checkpoint_utils", "hubert_asr", "loop"}  # as the package calls modules of fairseq's


def test_what_is_listed_is_there():
    assert len(LISTED) == 7
    for name in LISTED:
        module, _, attribute = name.rpartition(".")
        full = module if module.startswith("fairseq_cli") else f"fairseq.{module}"
        assert hasattr(importlib.import_module(full), attribute), name


def test_all_that_is_replaced_is_listed():
    replaced = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for target in node.targets if isinstance(node, ast.Assign) else ():
                if isinstance(target, ast.Attribute) and getattr(target.value, "id", "") in MODULES:
                    replaced.add(target.attr)
    assert replaced == {name.rpartition(".")[2] for name in LISTED} - {"MODEL_DATACLASS_REGISTRY"}
