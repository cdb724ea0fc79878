"""Students that fairseq fine-tuned, with their heads: the table of heads, and fairseq's own forward pass.

The encoder of such a checkpoint alone is read by ``import``, or as a teacher (``families.py``).
"""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_star.checkpoint import read_checkpoint
from fairseq_star.errors import StarError
from fairseq_star.formats import classification, ctc, fairseq
from fairseq_star.formats.building import misfit
from fairseq_star.formats.config import sections
from fairseq_star.formats.head import Head
from fairseq_star.formats.student import Student, load_student, student_of
from fairseq_star.models import classifier


@dataclass(frozen=True)
class Tuned:
    """A model of fairseq's that is fine-tuned with a head."""

    keys: tuple[str, ...]  # beginnings of all keys that are known
    student: Callable[[Mapping, str, str], Student]  # (checkpoint, path, name) -> the student without a head
    read: Callable[..., Head]  # (checkpoint, file of labels or None, name=...) -> the head
    # (checkpoint, head) -> fairseq's own model as a function of one utterance, 1 x samples -> the head's outputs.
    build: Callable[[Mapping, Any], Callable[[Tensor], list[Tensor]]]


def _of_fairseq(state: Mapping, path: str, name: str) -> Student:
    """Return the student in a checkpoint of a model of fairseq's own."""
    prefix = fairseq.FAMILIES[sections(state["cfg"])[0]["_name"]].prefix
    return student_of(
        fairseq.read_encoder(state, name=name),
        dropouts=fairseq.dropouts(state, name),
        name="starhubert",
        origin=path,
        mask_embedding=state["model"].get(f"{prefix}mask_emb"),
    )


HEADS: dict[str, Tuned] = {
    "hubert_ctc": Tuned(
        keys=(fairseq.FAMILIES["hubert_ctc"].prefix, ctc.PROJECTION),
        student=_of_fairseq,
        read=ctc.read_head,
        build=ctc.build_model,
    ),
    classifier.NAME: Tuned(
        keys=(classifier.STUDENT, classifier.CLASSIFIER),
        student=classification.read_student,
        read=classification.read_head,
        build=classification.build_model,
    ),
}
"""fairseq's name of a model -> how its head is read."""
LABELS: dict[str, Callable[[Mapping], Any]] = {
    ctc.CtcHead.kind: ctc.read_tokens,
    classification.ClassificationHead.kind: classification.read_labels,
    classification.EmbeddingHead.kind: lambda about: None,
}
"""The kind of a head -> the reader of the labels that ``Head.about`` described."""


def load_tuned(path: str | os.PathLike, option: str, dictionary: str | None = None) -> Student:
    """Read a student: with its head where fairseq fine-tuned it, else as :func:`load_student` does.

    Args:
        path: a checkpoint of a ``star_distillation`` run, or of a fine-tuning run of one of :data:`HEADS`.
        option: the option or command that names it, for messages.
        dictionary: fairseq's file of the labels; when None, that in the checkpoint or in its data folder.

    Raises:
        StarError: the file cannot be read, is unsafe or neither of these, or its dictionary is missing or of another
            size than the head.
    """
    path = os.fspath(path)
    state, name = read_checkpoint(path, option), f"{option}: {path}"
    registered = sections(state.get("cfg"))[0].get("_name")
    if not isinstance(registered, str) or registered not in HEADS:
        if dictionary is not None:
            raise StarError(f"{ctc.DICTIONARY} is for fine-tuned checkpoints, which {path} is not; leave it out")
        return load_student(path, option)
    tuned = HEADS[registered]
    student = tuned.student(state, path, name)
    lost = [key for key in state["model"] if not key.startswith(tuned.keys)]
    if lost:
        raise misfit(name, *(f"{key[:80]!a} is unknown" for key in lost))
    head = tuned.read(state, dictionary, name=name)
    student.head, student.reference = head, _Reference(tuned, state, head, student.normalize)
    return student


@dataclass(frozen=True)
class Described:
    """A program's description of its head."""

    kind: str  # of LABELS
    labels: Any  # such as Tokens; None of a head without
    inputs: tuple[str, ...]  # of the program
    sample_rate: int  # Hz
    downsample_rate: int  # samples a frame


def read_labels(metadata: str | None, name: str) -> Described:
    """Return the description of a head that a program's file carries (:meth:`Head.metadata`).

    Raises:
        StarError: there is none, or one of another version.
    """
    if metadata is None:
        raise StarError(f"{name} is an exported encoder without a head; export a fine-tuned checkpoint")
    try:
        about = json.loads(metadata)
        labels, inputs = LABELS[about["kind"]](about["labels"]), tuple(map(str, about["inputs"]))
        return Described(about["kind"], labels, inputs, int(about["sample_rate"]), int(about["downsample_rate"]))
    except (ValueError, TypeError, KeyError) as error:
        raise StarError(f"{name} describes its head as this version does not; export the checkpoint again") from error


class _Reference:
    """fairseq's own forward pass of a fine-tuned model."""

    def __init__(self, tuned: Tuned, state: Mapping, head: Head, normalize: bool):
        self.tuned, self.state, self.head, self.normalize = tuned, state, head, normalize

    @cached_property
    def _model(self) -> Callable[[Tensor], list[Tensor]]:
        with torch.random.fork_rng(devices=[]):
            return self.tuned.build(self.state, self.head)

    @torch.no_grad()
    def __call__(self, sources: Sequence[Tensor]) -> list[list[Tensor]]:
        """Return the head's outputs for each utterance by itself, as :meth:`Head.split` does."""
        given = (F.layer_norm(source, source.shape) if self.normalize else source for source in sources)
        return [self._model(source[None]) for source in given]
