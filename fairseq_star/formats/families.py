"""Any file or folder as a frozen encoder, or as a student of this project; its format is recognised by its content."""

import os
import shlex
from pathlib import Path
from types import ModuleType
from typing import Mapping

import torch

from fairseq_star.checkpoint import read_checkpoint, read_inert
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.errors import StarError
from fairseq_star.formats import dphubert, fairseq, hub, huggingface, lightning, microsoft, s3prl, student, torchaudio
from fairseq_star.formats.config import Section
from fairseq_star.formats.hf_folder import CONFIG, read_json
from fairseq_star.formats.student import Student, load_student, student_of, write_student
from fairseq_star.runtime.files import new_output

# Each has recognises(state), read_encoder(state, name=...) and dropouts(state, name). Any other file is fairseq's or
# of no known format.
FORMATS = (microsoft, student, s3prl, dphubert, torchaudio)
OPTION = "import"


def load_teacher(
    path: str | os.PathLike, *, valid_group_norm: bool = True, option: str = "task.teacher"
) -> FrozenEncoder:
    """Load a teacher: a frozen encoder of any format. Arguments and errors are those of :func:`load_encoder`.

    >>> import torch
    >>> from fairseq_star import load_teacher
    >>> teacher = load_teacher("assets/demo_teacher/demo_hubert.pt")
    >>> teacher.family, teacher.num_layers, teacher.embed_dim, teacher.sample_rate
    ('HuBERT (fairseq)', 6, 256, 16000)
    >>> [states] = teacher.hidden_states([torch.randn(16_000)], sample_rate=16_000)  # of one second
    >>> len(states), states[-1].shape  # layers + 1, each frames x width
    (7, torch.Size([49, 256]))
    """
    return load_encoder(path, valid_group_norm=valid_group_norm, option=option)


def load_encoder(path: str | os.PathLike, *, valid_group_norm: bool = True, option: str) -> FrozenEncoder:
    """Load the encoder in a file or folder, frozen; its format is recognised by its content, never by its name.

    Args:
        path: a fairseq checkpoint of HuBERT or wav2vec 2.0, pretrained or fine-tuned; a student of this project;
            a WavLM checkpoint of Microsoft's; s3prl's, torchaudio's or DPHuBERT's form of one of these; or a
            HuggingFace folder of HuBERT, wav2vec 2.0, WavLM or data2vec-audio, or its id, ``owner/name`` or
            ``owner/name@revision``, which is downloaded.
        valid_group_norm: features at an utterance's valid frames are those of the utterance alone: statistics of the
            first group norm over valid samples only, padding set to zero between data2vec's positional convolutions.
            Off: as the family's own library computes them, dependent on the batch.
        option: the option that names the path, for messages.

    Raises:
        StarError: the file cannot be read, is unsafe, or is no speech model that is known; an id cannot be downloaded.
    """
    path = hub.locate(os.fspath(path), option).path
    if not os.path.exists(path):
        raise StarError(
            f"{option}: {path} is not there; correct the path to a checkpoint or HuggingFace folder, or give a "
            "HuggingFace id such as facebook/hubert-base-ls960"
        )
    if os.path.isdir(path):
        if not os.path.isfile(os.path.join(path, CONFIG)):
            raise StarError(
                f"{option}: {path} is a folder without {CONFIG}; give a HuggingFace folder or a checkpoint file such "
                "as hubert_base_ls960.pt"
            )
        return huggingface.read_encoder(path, option=option, valid_group_norm=valid_group_norm)
    state, name = _read_state(path, option), f"{option}: {path}"
    return _format_of(state, path, option).read_encoder(state, name=name, valid_group_norm=valid_group_norm)


def _read_state(path: str, option: str) -> dict:
    """Read a checkpoint; a Lightning checkpoint that is refused for the classes in it is named as what it is."""
    try:
        return read_checkpoint(path, option)
    except StarError as refused:
        try:
            state = read_inert(path, option)
        except StarError:
            raise refused from None
        _refuse_known(state, path, option)
        raise


def _format_of(state: dict, path: str, option: str) -> ModuleType:
    found = _recognised(state)
    if found is None:
        _refuse_known(state, path, option)
    return found or fairseq


def _recognised(state: dict) -> ModuleType | None:
    return next((one for one in FORMATS if one.recognises(state)), None)


def _refuse_known(state: Mapping, path: str, option: str) -> None:
    """Refuse layouts that are known but not read, each with the way to one that is."""
    name = f"{option}: {path}"
    _refuse_dphubert_training(state, name)
    if lightning.recognises(state) and any(str(key).startswith(lightning.STUDENT) for key in state["state_dict"]):
        raise StarError(
            f"{name} is a Lightning checkpoint; import its student with fairseq-star import {shlex.quote(path)} "
            "--config YAML --out student.pt (the .yaml released with it), and give that"
        )
    if "Distiller" in state and "Config" in state:
        raise StarError(
            f"{name} is a checkpoint of s3prl's distiller, whose layout is not read; give a HuggingFace folder of that "
            "model, as there is of DistilHuBERT"
        )
    if any(str(key).endswith("feature_projection.projection.weight") for key in state):
        raise StarError(f"{name} is the weights of a HuggingFace folder alone; give the folder with its config.json")


def _refuse_dphubert_training(state: Mapping, name: str) -> None:
    """Refuse a checkpoint of DPHuBERT's training, which contains student and teacher under torchaudio's names."""
    keys = state["state_dict"] if lightning.recognises(state) else ()
    if any(str(key).startswith(lightning.STUDENT + "encoder.transformer.") for key in keys):
        raise StarError(f"{name} is a checkpoint of DPHuBERT's training; give what its save_final_ckpt.py makes of it")


def read_student(path: str, config: str | None = None) -> Student:
    """Read a student from another toolkit's file; the format is recognised by the content.

    Args:
        path: a Lightning ``.ckpt`` of the authors' or the re-implementation's, s3prl's converted wav2vec 2.0 format, a
            fairseq HuBERT or wav2vec 2.0 checkpoint (fine-tuned ones too, without their heads), torchaudio's or
            DPHuBERT's form of either, or a HuggingFace folder or its id.
        config: the ``.yaml`` released with a ``.ckpt``.

    Raises:
        StarError: another format, files that do not fit each other, or an encoder that ``starhubert`` cannot be.
    """
    path = hub.locate(path, OPTION).path
    name, is_folder = f"{OPTION}: {path}", os.path.isdir(path)
    state = {} if is_folder else read_inert(path, OPTION)
    known = _recognised(state)
    if lightning.recognises(state) and known is None:
        _refuse_dphubert_training(state, name)
        if config is None:
            raise StarError(f"{name} is a Lightning checkpoint; give the .yaml released with it as --config")
        return lightning.read_student(state, path=path, config_path=config)
    if config is not None:
        raise StarError(f"--config belongs to a Lightning .ckpt, which {path} is not; leave it out")
    if known is student:
        raise StarError(f"{name} is a checkpoint of this project already; use it as it is")
    if is_folder:
        encoder = huggingface.read_encoder(path, option=OPTION)
        dropouts = huggingface.dropouts(Section(read_json(os.path.join(path, CONFIG), OPTION), name))
    else:
        layout = _format_of(state, path, OPTION)
        encoder, dropouts = layout.read_encoder(state, name=name), layout.dropouts(state, name)
    return student_of(encoder, dropouts=dropouts, name="starhubert", origin=path)


def import_student(path: str, out: str | os.PathLike, *, config: str | None = None, force: bool = False) -> Student:
    """Write the student that :func:`read_student` reads as a checkpoint of this project, and check it by reading it.

    Raises:
        StarError: as ``read_student``, or ``out`` exists already or cannot be written.
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
