"""Foreign files as students of this project: the way back of the exports, and the authors' release format."""

import os
from pathlib import Path

import torch

from fairseq_star.errors import StarError
from fairseq_star.files import new_output
from fairseq_star.formats import foreign, hub, huggingface, lightning, student
from fairseq_star.formats.families import format_of, recognised
from fairseq_star.formats.fields import Section
from fairseq_star.formats.hf_folder import CONFIG, read_json
from fairseq_star.formats.inert import read_inert
from fairseq_star.formats.student import Student, load_student, student_of, write_student

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
        encoder = huggingface.read_encoder(path, option=OPTION)
        values = Section(read_json(os.path.join(path, CONFIG), OPTION), f"{OPTION}: {path}")
        return student_of(encoder, dropouts=huggingface.dropouts(values), name="starhubert", origin=path)
    state, name = read_inert(path, OPTION), f"{OPTION}: {path}"
    known = recognised(state)
    if foreign.is_lightning(state) and known is None:
        foreign.refuse_dphubert_training(state, name)
        if config is None:
            raise StarError(f"{name} is a Lightning checkpoint; give the .yaml released with it as --config")
        distiller = lightning.read_distiller(config)
        return lightning.student_of_lightning(state, distiller, path=path, config_path=config)
    _no_config(config, path)
    if known is student:
        raise StarError(f"{name} is a checkpoint of this project already; use it as it is")
    found = format_of(state, path, OPTION)
    encoder = found.read_encoder(state, name=name)
    return student_of(encoder, dropouts=found.dropouts(state, name), name="starhubert", origin=path)


def import_student(path: str, out: str | os.PathLike, *, config: str | None = None, force: bool = False) -> Student:
    """Write what :func:`read_student` reads as a checkpoint of this project, and read it again to see that it is equal.

    Raises:
        StarError: as ``read_student``, or ``out`` is taken or cannot be written at.
    """
    out = Path(out)
    with new_output(out, what="checkpoint", force=force, origin=path) as written:
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
