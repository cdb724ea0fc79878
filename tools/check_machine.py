"""What set-up needs of this machine, looked at before gigabytes are fetched: ``tools/check_machine.py [FOLDER]``.

FOLDER is where the environment will be. Each thing that is missing is told in one line with its mend; the status is
then 1. It runs on any Python from 3.6 on, with the standard library alone, so that the wrong one can be told as well.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile

OLDEST, NEWEST = (3, 11), (3, 13)
GIGABYTES = {"environment": 8, "temporary": 4}
"""Free space that set-up needs: what `du` says of a finished environment, and pip's unpacked downloads, rounded up."""


def python_fault():
    """Why this Python cannot be used, or None."""
    here = sys.version_info[:2]
    if OLDEST <= here <= NEWEST:
        return None
    told = "Python {}.{} ({})".format(*here, sys.executable)
    why = "hydra, which fairseq starts with, does not run on it" if here > NEWEST else "it is too old"
    return f"{told}: {why}; take Python 3.11, 3.12 or 3.13, as `make PYTHON=/path/to/python3.13 ...`"


def venv_fault():
    """Debian and its relatives leave out what ``python -m venv`` needs."""
    if all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
        return None
    return f"{sys.executable} cannot make an environment; on Debian or Ubuntu: apt-get install python3-venv"


def compiler_fault():
    """fairseq's extensions are C++: compiles one line, headers of this Python included."""
    compiler = (os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "g++").split()
    if shutil.which(compiler[0]) is None:
        compiler = ["g++"]
    if shutil.which(compiler[0]) is None:
        return "no C++ compiler, and fairseq is compiled; on Debian or Ubuntu: apt-get install g++ (or set CXX)"
    header = os.path.join(sysconfig.get_path("include"), "Python.h")
    if not os.path.isfile(header):
        return f"no {header}, and fairseq is compiled; on Debian or Ubuntu: apt-get install python3-dev"
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "try.cpp")
        with open(source, "w") as file:
            file.write("#include <Python.h>\n#include <vector>\nint main() { return std::vector<int>().size(); }\n")
        command = [*compiler, "-std=c++17", "-fsyntax-only", "-I", sysconfig.get_path("include"), source]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if result.returncode:
        lines = result.stdout.decode("utf-8", "replace").strip().splitlines() or ["no output"]
        return f"the C++ compiler {compiler[0]} does not compile one line ({lines[0]}); mend it or set CXX"
    return None


def disk_faults(folder):
    """One sentence for each file system that is too full; space for both is needed where they are one."""
    places = {"environment": existing(folder), "temporary": tempfile.gettempdir()}
    wanted = {}
    for name, place in places.items():
        device = os.stat(place).st_dev
        total = wanted.get(device, (place, 0))[1] + GIGABYTES[name]
        wanted[device] = (wanted.get(device, (place, 0))[0], total)
    for place, gigabytes in wanted.values():
        free = shutil.disk_usage(place).free / 1e9
        if free < gigabytes:
            mend = "make room, or set VENV (the environment) or TMPDIR (pip's downloads) to another disk"
            yield f"{place}: {free:.1f} GB free, set-up needs {gigabytes}; {mend}"


def existing(folder):
    """The nearest folder that is there."""
    folder = os.path.abspath(folder)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def faults(folder):
    """All that is missing, a sentence each."""
    fault = python_fault()
    if fault:  # what it lacks beside does not matter
        return [fault]
    found = [venv_fault(), compiler_fault(), *disk_faults(folder)]
    return [fault for fault in found if fault]


if __name__ == "__main__":
    missing = faults(sys.argv[1] if len(sys.argv) > 1 else ".venv")
    for sentence in missing:
        print("fairseq-star: " + sentence, file=sys.stderr)
    sys.exit(1 if missing else 0)
