"""The files that ``benchmarks.device`` compares: a student in float, and in as few bits as there are options for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fairseq_star.deploy.onnx import Onnx
from fairseq_star.errors import StarError
from fairseq_star.formats import Student, export, load_student

FLOAT, INT8, FIXED, INT4 = WEIGHTS = ("float32", "int8", "int8, fixed ranges", "int4")
TRAINED = ", trained for it"
OF_BITS = {"8": INT8, "4": INT4}


@dataclass
class File:
    """One of them."""

    weights: str
    student: Student  # in float; files of one checkpoint share it
    path: Path | None  # None: the export was refused
    megabytes: float | None = None
    refused: str = ""  # why


def make_files(
    folder: Path,
    checkpoint: str,
    weights: Sequence[str],
    calibration: str | None,
    trained_for: Sequence[tuple[str, str]] = (),
) -> list[File]:
    """A file for each of ``weights``, and for each student trained for few bits (their number, its checkpoint).

    Fixed ranges only with a manifest to take them from.
    """
    wanted = [(name, checkpoint, name) for name in weights if name != FIXED or calibration]
    wanted += [(OF_BITS[bits] + TRAINED, other, OF_BITS[bits]) for bits, other in trained_for]
    students = {one: load_student(one, "device") for _, one, _ in wanted}
    return [_file(folder, name, students[one], bits, calibration) for name, one, bits in wanted]


def _file(folder: Path, name: str, student: Student, weights: str, calibration: str | None) -> File:
    settings = {
        FLOAT: {},
        INT8: {"int8": True},
        FIXED: {"int8": True, "calibration": calibration},
        INT4: {"int4": True},
    }
    path = folder / f"{len(list(folder.iterdir()))}.onnx"
    try:
        exported = export(student, Onnx(**settings[weights]), path)
    except StarError as error:
        return File(name, student, None, refused=str(error).replace(str(path), "the file"))
    return File(name, student, path, round(exported.num_bytes / 1e6, 2))
