"""Reading checkpoint files that may come from anyone: tensors and plain values, never code.

Classes outside the allow-list are never looked up or called: a file with any is refused, or read with empty objects in
their place (:func:`read_inert`).
"""

import argparse
import collections
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from fairseq.data.dictionary import Dictionary
from fairseq.distributed import utils as distributed_utils
from omegaconf import DictConfig, ListConfig
from omegaconf.base import ContainerMetadata, Metadata
from omegaconf.nodes import AnyNode, BooleanNode, FloatNode, IntegerNode, StringNode
from torch import Tensor

from fairseq_star.errors import StarError

# Classes in fairseq checkpoints of all ages besides tensors and builtins. They are plain containers of values: building
# one runs no code that the file could choose.
ALLOWED_CLASSES = [
    Dictionary,
    argparse.Namespace,
    collections.defaultdict,
    DictConfig,
    ListConfig,
    ContainerMetadata,
    Metadata,
    AnyNode,
    BooleanNode,
    FloatNode,
    IntegerNode,
    StringNode,
    Any,
    # Types of values, named in an OmegaConf container's metadata.
    *(dict, list, tuple, int, float, str, bool),
]

# Errors of torch's two readers on bytes that are no whole checkpoint.
READING_ERRORS = (
    RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, OSError, struct.error, ArithmeticError,
    AssertionError, MemoryError, zipfile.BadZipFile,
)  # fmt: skip


def allow_checkpoint_classes() -> None:
    """Make ``torch.load(weights_only=True)``, also where fairseq itself calls it, accept fairseq's own checkpoints."""
    import numpy as np

    numpy_core = np._core if hasattr(np, "_core") else np.core  # numpy 2 renamed it
    numpy_classes = [
        (numpy_core.multiarray.scalar, "numpy.core.multiarray.scalar"),
        (numpy_core.multiarray.scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")),
    ]
    # A number that fairseq puts in a tensor's place where one process sends a checkpoint to the others.
    placeholder = [getattr(distributed_utils, "_TensorPlaceholder", int)]
    torch.serialization.add_safe_globals(ALLOWED_CLASSES + numpy_classes + placeholder)


def read_checkpoint(path: str, option: str) -> dict:
    """Read a torch checkpoint on the CPU under ``weights_only`` protection.

    Args:
        path: the file.
        option: the option that names it, for messages, e.g. ``task.teacher``.

    Raises:
        StarError: no such file, a truncated or foreign file, or one with classes outside the allow-list.
    """
    if not os.path.isfile(path):
        kind = "a folder, not a checkpoint file" if os.path.isdir(path) else "not there"
        raise StarError(f"{option}: {path} is {kind}; give a checkpoint of HuBERT, wav2vec 2.0 or WavLM")
    size = os.path.getsize(path)
    allow_checkpoint_classes()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        foreign = re.search(r"(?:Unsupported global: GLOBAL |Unsupported class |GLOBAL )([\w.]+)", str(error))
        if foreign:
            raise StarError(
                f"{option}: {path} contains {foreign[1]}, which is no part of a fairseq checkpoint; "
                "it was refused and nothing of it was run: get the file from its authors"
            ) from error
        raise StarError(_not_readable(option, path, size)) from error
    except READING_ERRORS as error:
        raise StarError(_not_readable(option, path, size)) from error
    if not isinstance(state, dict):
        raise StarError(f"{option}: {path} holds a {type(state).__name__}, no checkpoint; expected a dict with 'model'")
    return state


class Inert:
    """An empty object in the place of one whose class is not on the allow-list, whatever the file gives it."""

    def __new__(cls, *args, **kwargs) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_inert(path: str, option: str) -> dict:
    """Read a checkpoint as :func:`read_checkpoint` does, with objects of unknown classes as :class:`Inert`.

    Raises:
        StarError: as ``read_checkpoint``; modules that reach the system (``os``, ``sys``) are refused here too.
    """
    allow_checkpoint_classes()
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (*READING_ERRORS, pickle.UnpicklingError):
        foreign = []  # read_checkpoint reports it
    with torch.serialization.safe_globals([(Inert, name) for name in foreign]):
        return read_checkpoint(path, option)


_GIVE = "give a checkpoint of HuBERT, wav2vec 2.0 or WavLM"
_ELSEWHERE = (
    "its weights lost their names when it was made: give the checkpoint it was exported from, or import another "
    "export of it (s3prl, fairseq, huggingface, torchaudio) with fairseq-star import"
)


def _not_readable(option: str, path: str, size: int) -> str:
    with open(path, "rb") as file:
        head = file.read(64)
    if head[:2] == b"PK" and (other := _other_archive(path)):
        return f"{option}: {path} is {other}, no torch checkpoint; {_ELSEWHERE if 'program' in other else _GIVE}"
    if re.match(rb"\x08[\x01-\x1f][\x12\x1a\x22\x2a\x32\x3a\x42]", head):  # a small version, then one of fields 2 to 8
        return f"{option}: {path} is an ONNX file, no torch checkpoint; {_ELSEWHERE}"
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return f"{option}: {path} ({size:,} bytes) is truncated or damaged; copy or download it again"
    if head.startswith(b"version https://git-lfs"):
        return f"{option}: {path} is a Git LFS pointer, not the file itself; fetch it with git lfs pull"
    if head[8:9] == b"{" and head[5:8] == bytes(3):  # a header's length in eight bytes, then the header, which is JSON
        return f"{option}: {path} is a safetensors file; give the HuggingFace folder with it and its config.json"
    if head.lstrip()[:1] == b"{":
        return f"{option}: {path} is JSON, no torch checkpoint; give the HuggingFace folder with it"
    shown = "an empty file" if not size else f"no torch checkpoint (it begins with {head[:16]!r})"
    return f"{option}: {path} is {shown}; {_GIVE}"


def _other_archive(path: str) -> str | None:
    """Return the kind of a whole zip file that is no checkpoint; None for a broken one and for a checkpoint."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error):
        return None
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript program"
    if any(name.endswith("/models/model.json") for name in names):
        return "a torch.export program"
    return None if any(name.endswith("data.pkl") for name in names) else "a zip archive"


def shapes(weights: Any) -> dict:
    """Return the shape of each weight of a state dict, empty for anything else."""
    if not isinstance(weights, Mapping):
        return {}
    return {key: tuple(value.shape) if isinstance(value, Tensor) else None for key, value in weights.items()}


def num_updates(state: Mapping) -> int:
    """Return the number of updates that a checkpoint records; 0 where it records none, as an average does."""
    history = state.get("optimizer_history")
    last = history[-1] if isinstance(history, list) and history else {}
    number = last.get("num_updates") if isinstance(last, Mapping) else None
    return number if isinstance(number, int) else 0
