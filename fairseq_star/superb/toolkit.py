"""s3prl as a sweep runs it: its code, the interpreter of its environment, and what that environment has.

A sweep runs a copy of s3prl's package, byte for byte: some tasks keep lists of a corpus's files beside their code
(``voxceleb1/.cache``, ``sv_voxceleb1/.wav_lengths``), by the name of the part alone, so that a second corpus would
silently be read as the first. Relative paths in s3prl's configurations are the copy's.
"""

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fairseq_star.errors import StarError
from fairseq_star.superb.tasks import Task

PROGRAMS = Path(__file__).with_name("programs")
ENVIRONMENT = Path(".venv-superb") / "bin" / "python"
HOW = "make it with `make superb-env`, or name another interpreter with --python"
DIARIZATION_SCORER = "pyannote.metrics"  # which a sweep does without, if it must
# Every task's, by the runner or by the tools they share.
_ALWAYS = ("torchaudio", "tensorboardX", "huggingface_hub", "soundfile", "yaml")


@dataclass(frozen=True)
class Environment:
    """The interpreter that s3prl runs in, and what ``programs/look.py`` found there."""

    python: Path
    found: dict

    @classmethod
    def of(cls, python: Path | None, tasks: list[Task]) -> "Environment":
        """Look into an environment.

        Raises:
            StarError: no such interpreter, or it lacks torch or a library of the tasks.
        """
        chosen = Path(os.path.abspath(python or ENVIRONMENT))  # not resolved: a link is what makes it a venv's
        if not chosen.is_file():
            raise StarError(f"--python {chosen}: is not there; {HOW}")
        names = sorted({*_ALWAYS, DIARIZATION_SCORER, *(module for task in tasks for module in task.modules)})
        result = subprocess.run(
            [chosen, PROGRAMS / "look.py", *names], capture_output=True, text=True, check=False, env=_environment()
        )
        if result.returncode:
            said = (result.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise StarError(f"--python {chosen}: cannot run s3prl ({said}); {HOW}")
        found = json.loads(result.stdout)
        missing = [name for name in found["missing"] if name != DIARIZATION_SCORER]
        if missing:
            raise StarError(f"--python {chosen}: lacks {', '.join(missing)}; {HOW}")
        return cls(chosen, found)

    @property
    def device(self) -> str:
        """``cuda`` where the environment sees a GPU."""
        return "cuda" if self.found["cuda"] else "cpu"


def source_package(clone: Path | None, environment: Environment) -> Path:
    """s3prl's package: of a clone, or of the environment.

    Raises:
        StarError: there is none.
    """
    if clone is None:
        if not environment.found["package"]:
            raise StarError(f"--python {environment.python}: has no s3prl; give --s3prl CLONE, or {HOW}")
        return Path(environment.found["package"])
    for folder in (clone / "s3prl", clone):
        if (folder / "run_downstream.py").is_file():
            return folder.absolute()
    raise StarError(f"--s3prl {clone}: has no s3prl/run_downstream.py; name a clone of s3prl")


@dataclass(frozen=True)
class Toolkit:
    """The sweep's copy of s3prl, and how it is run."""

    environment: Environment
    source: Path
    folder: Path  # of the copy; the package is in it

    @property
    def package(self) -> Path:
        """The copied package."""
        return self.folder / "s3prl"

    def copy(self) -> None:
        """Copy the package, if it is not there yet.

        Raises:
            StarError: it cannot be written.
        """
        if self.package.is_dir():
            return
        ignored = shutil.ignore_patterns("__pycache__", ".cache", ".wav_lengths", "result")
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".code.", dir=self.folder.parent) as partial:
                whole = Path(partial) / "code"
                shutil.copytree(self.source, whole / "s3prl", ignore=ignored)
                os.replace(whole, self.folder)
        except (OSError, shutil.Error) as error:
            if self.package.is_dir():  # another job of an array was quicker
                return
            raise StarError(
                f"{self.folder}: s3prl cannot be copied there ({error}); make room, or another --out"
            ) from error

    @cached_property
    def version(self) -> str:
        """The clone's commit, or the package's version."""
        git = subprocess.run(
            ["git", "-C", str(self.source), "rev-parse", "--show-toplevel", "HEAD"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if git.returncode == 0 and Path(git.stdout.split("\n")[0]) == self.source.parent:
            return f"s3prl, commit {git.stdout.split()[-1][:12]}"
        versions = self.environment.found["versions"]
        for name in ("espnet-s3prl", "s3prl"):
            if name in versions:
                return f"{name} {versions[name]}"
        return f"s3prl of {self.source}"

    def command(self, *arguments: str) -> list[str]:
        """s3prl's ``run_downstream.py`` with these arguments; to be started by this process, with which it ends."""
        tied = [str(PROGRAMS / "tied.py"), str(os.getpid())]
        return [str(self.environment.python), *tied, str(PROGRAMS / "launch.py"), *arguments]

    def python(self, *arguments: str) -> list[str]:
        """Another script of s3prl's, in its environment."""
        return [str(self.environment.python), *arguments]

    def process_options(self) -> dict:
        """``cwd`` and ``env`` of a process: the copy's, and nothing of this project on the path."""
        return {"cwd": self.package, "env": _environment(PYTHONPATH=str(self.folder))}


def _environment(**others: str) -> dict[str, str]:
    """This process's environment without its Python path; the folder of a script is no place to import from."""
    kept = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }
    return {**kept, "PYTHONSAFEPATH": "1", **others}
