"""Students that fairseq fine-tuned, with their heads: the table of heads, and fairseq's own forward pass.

The encoder of such a checkpoint alone is read by ``import``, or as a teacher (``families.py``).
"""

import json
import os
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from fairseq.data.dictionary import Dictionary
from fairseq.models.hubert.hubert_asr import HubertCtc
from omegaconf import OmegaConf
from torch import Tensor, nn

from fairseq_star.checkpoint import read_checkpoint
from fairseq_star.errors import StarError
from fairseq_star.formats import classification, ctc, fairseq
from fairseq_star.formats.building import misfit
from fairseq_star.formats.config import plain, sections
from fairseq_star.formats.head import Head
from fairseq_star.formats.student import Student, load_student, student_of
from fairseq_star.models import classifier

DICTIONARY = "--dictionary"


@dataclass(frozen=True)
class Tuned:
    """A model of fairseq's that is fine-tuned with a head."""

    head: type[Head]
    read: Callable[..., Head]  # (weights, labels, post_process, name=...) -> the head
    keys: tuple[str, ...]  # beginnings of all keys that are known
    student: Callable[[Mapping, str, str], Student]  # (checkpoint, path, name) -> the student without a head
    labels: Callable[[Mapping, str | None, str], Any]  # (checkpoint, --dictionary, name) -> the labels of the head
    build: Callable[[Any, Any], nn.Module]  # (config, task) -> fairseq's own model
    outputs: Callable[[nn.Module, Tensor], Tensor]  # (fairseq's own model, 1 x samples) -> what the head computes


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
            raise StarError(f"{DICTIONARY} is for fine-tuned checkpoints, which {path} is not; leave it out")
        return load_student(path, option)
    tuned = HEADS[registered]
    student = tuned.student(state, path, name)
    lost = [key for key in state["model"] if not key.startswith(tuned.keys)]
    if lost:
        raise misfit(name, *(f"{key[:80]!a} is unknown" for key in lost))
    labels = tuned.labels(state, dictionary, name)
    criterion = plain(plain(state["cfg"]).get("criterion"))
    student.head = tuned.read(state["model"], labels, criterion.get("post_process"), name=name)
    student.reference = _Reference(state, tuned, labels, student.normalize)
    return student


def _fairseqs(state: Mapping, path: str, name: str) -> Student:
    """Return the student in a checkpoint of a model of fairseq's own."""
    prefix = fairseq.FAMILIES[sections(state["cfg"])[0]["_name"]].prefix
    return student_of(
        fairseq.read_encoder(state, name=name),
        dropouts=fairseq.dropouts(state, name),
        name="starhubert",
        origin=path,
        mask_embedding=state["model"].get(f"{prefix}mask_emb"),
    )


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


def _dictionary(state: Mapping, path: str | None, name: str) -> Dictionary:
    """Return the dictionary of the labels: the file's, else the checkpoint's, else that of its data folder."""
    task, recorded = sections(state["cfg"])[1], state.get("task_state")
    if path is not None:
        return _read_dictionary(path, f"{DICTIONARY} {path}")
    if isinstance(recorded, Mapping):
        several = recorded.get("dictionaries")
        for one in (recorded.get("target_dictionary"), *(several if isinstance(several, list) else ())):
            if isinstance(one, Dictionary):
                return one
    labels, folder = task.get("labels"), task.get("target_dictionary") or task.get("data")
    labels = labels[0] if isinstance(labels, list) and labels else labels
    file = os.path.join(str(folder), f"dict.{labels}.txt")
    if not os.path.isfile(file):
        raise StarError(f"{name} holds no dictionary of its labels, and there is no {file}; give one as {DICTIONARY}")
    return _read_dictionary(file, f"{name}: its dictionary {file}")


def _read_dictionary(path: str, what: str) -> Dictionary:
    try:
        return Dictionary.load(path)
    except OSError as error:
        raise StarError(f"{what} cannot be read ({error.strerror}); correct the path") from error
    except Exception as error:  # fairseq raises a bare Exception for bytes that are no UTF-8
        reason = " ".join(str(error).split())[:200]
        raise StarError(f"{what} does not hold fairseq's lines `symbol count` ({reason}); correct it") from error


class _Reference:
    """fairseq's own forward pass of a fine-tuned model, built when it is first called."""

    def __init__(self, state: Mapping, tuned: Tuned, labels: Dictionary, normalize: bool):
        self.state, self.tuned, self.labels, self.normalize = state, tuned, labels, normalize
        self.model: nn.Module | None = None

    @torch.no_grad()
    def __call__(self, sources: Sequence[Tensor]) -> list[list[Tensor]]:
        """Return the head's outputs for each utterance by itself, as :meth:`Head.split` does."""
        self.model = self.model or self._build()
        outputs = []
        for source in sources:
            given = F.layer_norm(source, source.shape) if self.normalize else source
            outputs.append([self.tuned.outputs(self.model, given[None])])
        return outputs

    def _build(self) -> nn.Module:
        # fairseq's own config lacks `autoregressive`, which its encoder asks for (fairseq_hooks/hubert_ctc.py).
        config = OmegaConf.create({**sections(self.state["cfg"])[0], "autoregressive": False, "data": ""})
        recorded = self.state.get("task_state")
        # Without dictionaries the pretraining task would look for files of units, which fine-tuning has no use for.
        restored = {"dictionaries": [None], **(recorded if isinstance(recorded, Mapping) else {})}
        task = SimpleNamespace(target_dictionary=self.labels, state_dict=lambda: restored)
        with torch.random.fork_rng(devices=[]):
            model = self.tuned.build(config, task)
        model.load_state_dict(self.state["model"])
        return model.eval()


def _ctc_outputs(model: nn.Module, source: Tensor) -> Tensor:
    net_output = model(source=source, padding_mask=None)
    return model.get_normalized_probs(net_output, log_probs=True)[:, 0]


HEADS: dict[str, Tuned] = {
    "hubert_ctc": Tuned(
        head=ctc.CtcHead,
        read=ctc.read_head,
        keys=(fairseq.FAMILIES["hubert_ctc"].prefix, ctc.PROJECTION),
        student=_fairseqs,
        labels=_dictionary,
        build=HubertCtc.build_model,
        outputs=_ctc_outputs,
    ),
    classifier.NAME: Tuned(
        head=classification.ClassificationHead,
        read=classification.read_head,
        keys=(classifier.STUDENT, classifier.CLASSIFIER),
        student=classification.read_student,
        labels=classification.read_names,
        build=classifier.StarHubertClassifier.build_model,
        outputs=classification.log_probs,
    ),
}
"""fairseq's name of a model -> how its head is read."""
LABELS = {
    ctc.CtcHead.kind: ctc.read_tokens,
    classification.ClassificationHead.kind: classification.read_described,
    classification.EmbeddingHead.kind: lambda about: None,
}
"""The kind of a head -> the reader of its labels in a program's metadata."""
