"""s3prl as a sweep runs it: its code, its environment, and the upstream that it evaluates.

A sweep runs a copy of s3prl's package, byte for byte: some tasks cache lists of a corpus's files next to their code
(``voxceleb1/.cache``, ``sv_voxceleb1/.wav_lengths``), by the name of the part alone, so that a second corpus would
silently be read as the first. Relative paths in s3prl's configurations are the copy's.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fairseq_star.errors import StarError
from fairseq_star.manifest import write_lines
from fairseq_star.superb.parsing import last_error
from fairseq_star.superb.tasks import Task

PROGRAMS = Path(__file__).with_name("programs")
ENVIRONMENT = Path(".venv-superb") / "bin" / "python"
HOW = "make it with `make superb-env`, or name another interpreter with --python"
DIARIZATION_SCORER = "pyannote.metrics"  # optional
LOCAL = "wav2vec2_local"  # s3prl's upstream of an exported student
# What every task imports, by the runner or by shared code.
_ALWAYS = ("torchaudio", "tensorboardX", "huggingface_hub", "soundfile", "yaml")


@dataclass(frozen=True)
class Environment:
    """Interpreter that s3prl runs in, and what ``programs/environment.py`` reports of it."""

    python: Path
    found: dict

    @classmethod
    def of(cls, python: Path | None, tasks: list[Task]) -> "Environment":
        """Inspect an environment.

        Raises:
            StarError: no such interpreter, or it lacks torch or a library of the tasks.
        """
        chosen = Path(os.path.abspath(python or ENVIRONMENT))  # not resolved: a venv's interpreter is a link
        if not chosen.is_file():
            raise StarError(f"--python {chosen}: is not there; {HOW}")
        names = sorted({*_ALWAYS, DIARIZATION_SCORER, *(module for task in tasks for module in task.modules)})
        command = [chosen, PROGRAMS / "environment.py", *names]
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise StarError(f"--python {chosen}: cannot run s3prl ({reason}); {HOW}")
        found = json.loads(result.stdout)
        missing = [name for name in found["missing"] if name != DIARIZATION_SCORER]
        if missing:
            raise StarError(f"--python {chosen}: lacks {', '.join(missing)}; {HOW}")
        return cls(chosen, found)

    @property
    def device(self) -> str:
        """``cuda`` where the environment has a GPU, else ``cpu``."""
        return "cuda" if self.found["cuda"] else "cpu"


def source_package(clone: Path | None, environment: Environment) -> Path:
    """Return the folder of s3prl's package, in a clone or the environment.

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
    """Copy of s3prl that a sweep runs."""

    environment: Environment
    source: Path
    folder: Path  # of the copy; the package is in it

    @property
    def package(self) -> Path:
        return self.folder / "s3prl"

    def copy(self) -> None:
        """Copy the package unless it is there.

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
            if self.package.is_dir():  # another job of an array was faster
                return
            raise StarError(
                f"{self.folder}: s3prl cannot be copied there ({error}); make room, or another --out"
            ) from error

    @cached_property
    def version(self) -> str:
        """Commit of the clone, or version of the package."""
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
        """Return a command for s3prl's ``run_downstream.py``; its process ends with this one."""
        programs = [str(PROGRAMS / "end_with_parent.py"), str(os.getpid()), str(PROGRAMS / "launch.py")]
        return [str(self.environment.python), *programs, *arguments]

    def python(self, *arguments: str) -> list[str]:
        """Return a command for another script in s3prl's environment."""
        return [str(self.environment.python), *arguments]

    def process_options(self) -> dict:
        """Return ``cwd`` and ``env`` of a process: the copy's, without this project on the path."""
        return {"cwd": self.package, "env": _environment(PYTHONPATH=str(self.folder))}


def _environment(**others: str) -> dict[str, str]:
    """This process's environment without its Python path, nor a script's folder on it."""
    own = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {**{name: value for name, value in os.environ.items() if name not in own}, "PYTHONSAFEPATH": "1", **others}


@dataclass(frozen=True)
class Upstream:
    """Upstream of s3prl's: ``-u name`` and, where it has one, ``-k file``."""

    name: str
    file: Path | None
    title: str  # in the table
    identity: str  # distinguishes it from others: a checkpoint's digest
    cost: dict = field(default_factory=dict)  # parameters and MACs where they are known

    @property
    def arguments(self) -> list[str]:
        return ["-u", self.name, *(["-k", str(self.file)] if self.file else [])]


def named(name: str, file: Path | None) -> Upstream:
    """Return an upstream that s3prl knows by name.

    Raises:
        StarError: its file is not there.
    """
    if file is not None and not file.is_file():
        raise StarError(f"--upstream-file {file}: is not there; name the file that s3prl's -k takes")
    title = {"fbank": "FBANK"}.get(name, name)
    identity = name if file is None else f"{name} {_digest(file)}"
    return Upstream(name, file and file.absolute(), title, identity)


def exported(checkpoint: str, title: str, out: Path) -> Upstream:
    """Export the student of ``checkpoint`` into ``out``, unless an export of the same checkpoint is there.

    Raises:
        StarError: no student, one of another sample rate or frame rate than s3prl's, or an export that differs from it.
    """
    path, about = out / "student.s3prl.pt", out / "student.json"
    digest = _digest(Path(checkpoint)) if Path(checkpoint).is_file() else ""
    known = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}
    if not digest or known.get("sha256") != digest or not path.is_file():
        if known and known.get("sha256") != digest:
            raise StarError(f"--out {out}: is of another checkpoint ({known.get('checkpoint')}); name another")
        known = _export(checkpoint, path) | {"checkpoint": checkpoint, "sha256": digest}
        write_lines(about, [json.dumps(known, indent=1) + "\n"])
    return Upstream(LOCAL, path.absolute(), title, digest, known["cost"])


def _export(checkpoint: str, path: Path) -> dict:
    from fairseq_star.deploy.targets import load_target
    from fairseq_star.encoder.macs import SUPERB_UTTERANCES, encoder_macs
    from fairseq_star.formats import export, load_student

    student = load_student(checkpoint, "superb")
    done = export(student, load_target("s3prl")(), path, force=True)
    cost = {
        "parameters": student.num_parameters,
        "gmacs_superb": sum(encoder_macs(student.config, SUPERB_UTTERANCES)) / 1e9,
    }
    return {"differs": max(done.alone, done.batched), "cost": cost}


def look_into(upstream: Upstream, toolkit: Toolkit) -> dict:
    """Load an upstream in s3prl's environment; return its number of hidden states, their width and samples a frame.

    Raises:
        StarError: s3prl cannot load it.
    """
    command = toolkit.python(
        str(PROGRAMS / "try_upstream.py"), *filter(None, (upstream.name, upstream.file and str(upstream.file)))
    )
    result = subprocess.run(command, capture_output=True, text=True, check=False, **toolkit.process_options())
    if result.returncode:
        raise StarError(f"s3prl cannot load the upstream {upstream.title}: {last_error(result.stderr)}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
