"""``tools/check_house.py``: each of its rules can fail, and the repository keeps them all."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import fairseq_star

ROOT = Path(fairseq_star.__file__).resolve().parents[1]
SCRIPT = ROOT / "tools" / "check_house.py"
spec = importlib.util.spec_from_file_location("check_house", SCRIPT)
check_house = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_house)

RAISING = 'def read(x):\n    """Read."""\n    raise StarError("no")\n'
PATH_EDITS = [
    "import sys\nsys.path.insert(0, 'x')\n",
    "import sys\nsys.path += ['x']\n",
    "import sys\nsys.path = []\n",
    "import sys\nsys.path[:0] = ['x']\n",
    "import sys\ndel sys.path[0]\n",
    "from sys import path\n",
]


def told(path: str, text: str) -> list[str]:
    return list(check_house.faults({path: text}))


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        *[({"tools/x.py": edit}, "tools/x.py:") for edit in PATH_EDITS],
        ({"fairseq_star/x.py": "from tests.tiny import x\n"}, "fairseq_star/x.py:1: imports from tests"),
        ({"fairseq_star/x.py": "def f():\n    import tests\n"}, "fairseq_star/x.py:2: imports from tests"),
        ({"tools/x.py": '"""One.\n\nOf `two`.\n"""\n'}, "tools/x.py:3: `two` in a docstring"),
        ({"fairseq_star/x.py": RAISING}, "fairseq_star/x.py:1: read raises StarError"),
        ({"fairseq_star/x.py": "class A:\n" + RAISING.replace("def", " def").replace("    ", "     ")}, "read raises"),
    ],
)
def test_each_rule_can_fail(files, fault):
    [found] = check_house.faults(files)
    assert fault in found


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("tools/x.py", "import sys\nprint(sys.path, sys.path[0], sys.executable)\nfor x in sys.path:\n    pass\n"),
        ("tools/x.py", "import testing\nfrom . import tests\n"),
        ("tools/x.py", '"""Of ``two``, :func:`three` and :class:`~a.Four`."""\nx = "`five`"  # `six`\n'),
        ("fairseq_star/x.py", RAISING.replace("Read.", "Read.\n\n    Raises:\n        StarError: always.\n    ")),
        ("fairseq_star/x.py", RAISING.replace("read", "_read")),
        ("fairseq_star/x.py", "class _A:\n" + RAISING.replace("def", " def").replace("    ", "     ")),
        ("tools/x.py", RAISING),
    ],
)
def test_what_is_well_is_not_told(path, text):
    assert told(path, text) == []


def test_the_repository_keeps_the_rules():
    done = subprocess.run([sys.executable, SCRIPT, ROOT], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_status_tells_of_a_fault(tmp_path):
    (tmp_path / "x.py").write_text('"""`x`."""\n')
    for command in (["init", "-q"], ["add", "x.py"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "x.py:1: `x` in a docstring; names and code have two backticks on each side\n"
