"""Foreign files as students of this project: the way back of the exports, and the authors' release format."""

import os
from pathlib import Path

import torch

from fairseq_star import teachers
from fairseq_star.convert import huggingface, lightning
from fairseq_star.convert.placing import placed
from fairseq_star.convert.student import DROPOUTS, Student, load_student, student_of, write_student
from fairseq_star.errors import StarError
from fairseq_star.teachers import dphubert, fairseq_checkpoint, foreign, hub, s3prl, starhubert, torchaudio
from fairseq_star.teachers import huggingface as hf_teacher
from fairseq_star.teachers.config import Section
from fairseq_star.teachers.hf_folder import CONFIG, read_json
from fairseq_star.teachers.inert import read_inert

OPTION = "import"


def read_student(path: str, config: str | None = None) -> Student:
    """Read a student from another toolkit's file; the format is told from the content.

    Args:
        path: a Lightning ``.ckpt`` of the authors' or the re-implementation's, s3prl's converted wav2vec 2.0 format, a
            fairseq HuBERT or wav2vec 2.0 checkpoint (fine-tuned ones too, without their heads), torchaudio's or
            DPHuBERT's form of either, or a HuggingFace folder or its id.
        config: the ``.yaml`` beside a ``.ckpt``.

    Raises:
        StarError: another format, files that do not fit each other, or an encoder that ``starhubert`` cannot be.
    """
    path = hub.locate(path, OPTION).path
    if os.path.isdir(path):
        _no_config(config, path)
        teacher = hf_teacher.build_teacher(path, option=OPTION)
        values = Section(read_json(os.path.join(path, CONFIG), OPTION), f"{OPTION}: {path}")
        return student_of(teacher, dropouts=huggingface.dropouts(values), name="starhubert", origin=path)
    state, name = read_inert(path, OPTION), f"{OPTION}: {path}"
    if foreign.is_lightning(state) and _torchaudio_arguments(state) is None:
        foreign.refuse_dphubert_training(state, name)
        if config is None:
            raise StarError(f"{name} is a Lightning checkpoint; give the .yaml released with it as --config")
        distiller = lightning.read_distiller(config)
        return lightning.student_of_lightning(state, distiller, path=path, config_path=config)
    _no_config(config, path)
    if starhubert.is_starhubert(state):
        raise StarError(f"{name} is a checkpoint of this project already; use it as it is")
    teacher = teachers.build_teacher(state, path, option=OPTION)
    return student_of(teacher, dropouts=_dropouts(state, name), name="starhubert", origin=path)


def _dropouts(state: dict, name: str) -> dict[str, float]:
    """The dropouts that a checkpoint says, 0 where it says none."""
    if (arguments := _torchaudio_arguments(state)) is not None:
        return torchaudio.dropouts(arguments, name)
    if s3prl.is_s3prl(state):
        state = s3prl.as_fairseq(state)
    model, _ = fairseq_checkpoint.sections(state["cfg"] if state.get("cfg") is not None else state.get("args"))
    values = Section(model, name)
    return {key: values.share(key, 0.0) for key in DROPOUTS}


def _torchaudio_arguments(state: dict) -> dict | None:
    """The arguments in a file of torchaudio's layout or DPHuBERT's, maybe none; None in a file of another."""
    if dphubert.is_dphubert(state):
        return state["config"]
    return state.get("arguments", {}) if torchaudio.is_torchaudio(state) else None


def import_student(path: str, out: str | os.PathLike, *, config: str | None = None, force: bool = False) -> Student:
    """Write what :func:`read_student` reads as a checkpoint of this project, and read it again to see that it is equal.

    Raises:
        StarError: as ``read_student``, or ``out`` is taken or cannot be written at.
    """
    out = Path(out)
    with placed(out, what="checkpoint", force=force, origin=path) as written:
        student = read_student(path, config)
        write_student(student, written)
        again = load_student(str(written), OPTION)
        expected, got = student.weights(), again.weights()
        if expected.keys() != got.keys() or not all(torch.equal(expected[key], got[key]) for key in expected):
            raise StarError(f"{OPTION}: {out} did not come out equal to {path}; it was not written, please report it")
    return student


def _no_config(config: str | None, path: str) -> None:
    if config is not None:
        raise StarError(f"--config belongs to a Lightning .ckpt, which {path} is not; leave it out")
