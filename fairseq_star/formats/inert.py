"""Checkpoints that hold objects of unknown classes, read all the same: each such object as an empty one of no class.

What a file names is never looked up or called, and nothing of it is used.
"""

import pickle
from typing import Any

import torch

from fairseq_star.formats.checkpoint import READING_ERRORS, allow_checkpoint_classes, read_checkpoint


class Inert:
    """What stands for an object of a class that is not a checkpoint's business."""

    def __new__(cls, *args, **kwargs) -> "Inert":
        """An empty object, whatever the file says it is made of."""
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_inert(path: str, option: str) -> dict:
    """:func:`read_checkpoint`, with objects of unknown classes as :class:`Inert`.

    Raises:
        StarError: as ``read_checkpoint``; modules that reach the system (``os``, ``sys``) are refused all the same.
    """
    allow_checkpoint_classes()  # which are not foreign
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (*READING_ERRORS, pickle.UnpicklingError):
        foreign = []  # the reader finds the words for it
    with torch.serialization.safe_globals([(Inert, name) for name in foreign]):
        return read_checkpoint(path, option)
