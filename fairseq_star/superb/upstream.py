"""What is evaluated: a student, exported for s3prl, or any upstream that s3prl knows by name."""

import hashlib
import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from fairseq_star.errors import StarError
from fairseq_star.manifest import write_lines
from fairseq_star.superb.parsing import last_error
from fairseq_star.superb.toolkit import PROGRAMS, Toolkit

LOCAL = "wav2vec2_local"


@dataclass(frozen=True)
class Upstream:
    """An upstream of s3prl's: ``-u name`` and, where it has one, ``-k file``.

    title: for people; identity: what tells it from another, such as the checkpoint's digest; cost: parameters and MACs
    where they are known.
    """

    name: str
    file: Path | None
    title: str
    identity: str
    cost: dict = field(default_factory=dict)

    @property
    def arguments(self) -> list[str]:
        """Of s3prl's command line."""
        return ["-u", self.name, *(["-k", str(self.file)] if self.file else [])]


def named(name: str, file: Path | None) -> Upstream:
    """An upstream that s3prl knows.

    Raises:
        StarError: its file is not there.
    """
    if file is not None and not file.is_file():
        raise StarError(f"--upstream-file {file}: is not there; name the file that s3prl's -k takes")
    title = {"fbank": "FBANK"}.get(name, name)
    identity = name if file is None else f"{name} {_digest(file)}"
    return Upstream(name, file and file.absolute(), title, identity)


def exported(checkpoint: str, title: str, out: Path) -> Upstream:
    """The student of ``checkpoint``, exported into ``out``; an export of the same checkpoint is not repeated.

    Raises:
        StarError: no student, of another sample rate or frame rate than s3prl's, or the export differs from it.
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
    """Load an upstream in s3prl's environment: its number of hidden states, their width, samples a frame.

    Raises:
        StarError: s3prl cannot load it.
    """
    command = toolkit.python(
        str(PROGRAMS / "listen.py"), *filter(None, (upstream.name, upstream.file and str(upstream.file)))
    )
    result = subprocess.run(command, capture_output=True, text=True, check=False, **toolkit.process_options())
    if result.returncode:
        raise StarError(f"s3prl cannot load the upstream {upstream.title}: {last_error(result.stderr)}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
