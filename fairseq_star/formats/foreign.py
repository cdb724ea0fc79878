"""Layouts that are known and that no teacher is read from: each named as what it is, with the way to one that is."""

import shlex
from typing import Mapping

from fairseq_star.errors import StarError
from fairseq_star.formats.checkpoint import read_checkpoint
from fairseq_star.formats.inert import read_inert


def is_lightning(state: Mapping) -> bool:
    """Whether a checkpoint is laid out as Lightning's are."""
    return isinstance(state.get("state_dict"), dict)


def read_state(path: str, option: str) -> dict:
    """:func:`read_checkpoint`; a Lightning checkpoint that is refused for the classes in it is named as what it is.

    Raises:
        StarError: as ``read_checkpoint``.
    """
    try:
        return read_checkpoint(path, option)
    except StarError as refused:
        try:
            state = read_inert(path, option)
        except StarError:
            raise refused from None
        refuse(state, path, option)
        raise


def refuse(state: Mapping, path: str, option: str) -> None:
    """Say what ``state`` is, if it is of a layout known by name alone.

    Raises:
        StarError: it is.
    """
    name = f"{option}: {path}"
    refuse_dphubert_training(state, name)
    if is_lightning(state) and any(str(key).startswith("student_model.") for key in state["state_dict"]):
        raise StarError(
            f"{name} is a Lightning checkpoint; bring its student in with fairseq-star import {shlex.quote(path)} "
            "--config YAML --out student.pt (the .yaml released with it), and give that"
        )
    if "Distiller" in state and "Config" in state:
        raise StarError(
            f"{name} is a checkpoint of s3prl's distiller, whose layout is not read; give a HuggingFace folder of that "
            "model, as there is of DistilHuBERT"
        )
    if any(str(key).endswith("feature_projection.projection.weight") for key in state):
        raise StarError(f"{name} is the weights of a HuggingFace folder alone; give the folder with its config.json")


def refuse_dphubert_training(state: Mapping, name: str) -> None:
    """Name a checkpoint of DPHuBERT's training, in which student and teacher lie under torchaudio's names.

    Raises:
        StarError: it is one.
    """
    keys = state["state_dict"] if is_lightning(state) else ()
    if any(str(key).startswith("student_model.encoder.transformer.") for key in keys):
        raise StarError(f"{name} is a checkpoint of DPHuBERT's training; give what its save_final_ckpt.py makes of it")
