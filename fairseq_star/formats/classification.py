"""Heads of one vector an utterance: the labels of ``starhubert_classifier``, or the pooled vector itself.

Shapes: B utterances, T frames of the longest one, D width, L layers.
"""

from pathlib import Path
from typing import Any, Callable, ClassVar, Mapping, Sequence

import torch
from omegaconf import OmegaConf
from torch import Tensor

from fairseq_star.encoder.pooling import Pooling, UtteranceClassifier
from fairseq_star.errors import StarError
from fairseq_star.formats.building import misfit
from fairseq_star.formats.config import plain, sections
from fairseq_star.formats.head import Head
from fairseq_star.formats.student import Student, student_in
from fairseq_star.models.classifier import CLASSIFIER, STUDENT, StarHubertClassifier

LABELS = "labels.txt"


class ClassificationHead(Head):
    """Log-probabilities of the labels of a closed set, one set an utterance.

    Args:
        classifier: the learned sum of layers and the linear layer.
        labels: in the order of its scores.
    """

    kind, title = "classification", "log-probabilities of labels"
    outputs: ClassVar = {"log_probs": {0: "batch"}}

    def __init__(self, classifier: UtteranceClassifier, labels: Sequence[str]):
        super().__init__()
        self.classifier, self.labels = classifier, tuple(labels)
        self.requires_grad_(False).eval()

    def forward(self, states: Sequence[Tensor], frame_lengths: Tensor) -> tuple[Tensor]:
        """Return the log-probabilities, B x labels."""
        return (torch.log_softmax(self.classifier(states, frame_lengths), dim=-1),)

    def split(self, outputs: Sequence[Tensor], frame_lengths: Tensor) -> list[list[Tensor]]:
        """Return the 1 x labels log-probabilities of each utterance."""
        return [[one] for one in outputs[0].split(1)]

    def text(self, outputs: Sequence[Tensor]) -> str:
        """Return the most probable label."""
        return self.labels[int(outputs[0].argmax())]

    def margin(self, outputs: Sequence[Tensor]) -> float:
        """Return half the distance of the two best labels."""
        first, second = outputs[0].flatten().topk(2).values
        return float(first - second) / 2

    def about(self) -> dict[str, Any]:
        """Return the labels."""
        return {"labels": list(self.labels)}

    def write_labels(self, folder: Path) -> None:
        """Write ``labels.txt``: a label a line, in the order of the scores."""
        (folder / LABELS).write_text("".join(f"{label}\n" for label in self.labels), encoding="utf-8")


class EmbeddingHead(Head):
    """The pooled vector of an utterance, B x D, for search and verification."""

    kind, title = "embedding", "embedding"
    outputs: ClassVar = {"embedding": {0: "batch"}}

    def __init__(self, pooling: Pooling):
        super().__init__()
        self.pooling = pooling
        self.requires_grad_(False).eval()

    def forward(self, states: Sequence[Tensor], frame_lengths: Tensor) -> tuple[Tensor]:
        """Return the pooled vectors, B x D."""
        return (self.pooling(states, frame_lengths),)

    def split(self, outputs: Sequence[Tensor], frame_lengths: Tensor) -> list[list[Tensor]]:
        """Return the 1 x D vector of each utterance."""
        return [[one] for one in outputs[0].split(1)]

    def text(self, outputs: Sequence[Tensor]) -> str:
        """Return nothing: people read no vectors."""
        return ""

    def margin(self, outputs: Sequence[Tensor]) -> float:
        """Return infinity, as no text can change."""
        return float("inf")

    def about(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def write_labels(self, folder: Path) -> None:
        """Write nothing: vectors have no labels."""


def read_student(state: Mapping, path: str, name: str) -> Student:
    """Return the student in a checkpoint of ``starhubert_classifier``.

    Raises:
        StarError: config and weights do not fit each other, or the audio format is missing.
    """
    architecture = plain(sections(state["cfg"])[0].get("student_args"))
    weights = {key.removeprefix(STUDENT): value for key, value in state["model"].items() if key.startswith(STUDENT)}
    task = {"_name": "star_distillation", "sample_rate": None, "normalize": None}
    inner = {"cfg": {"model": architecture, "task": task}, "model": weights, "task_state": state.get("task_state")}
    return student_in(inner, path, name)


def read_head(state: Mapping, dictionary: str | None, *, name: str) -> ClassificationHead:
    """Return the head of a fine-tuned ``starhubert_classifier``.

    Args:
        state: the checkpoint, which records its labels.
        dictionary: of CTC alone.
        name: option and file, for messages.

    Raises:
        StarError: it records no labels, a dictionary is given too, or its weights are of another shape.
    """
    labels, weights = _recorded_labels(state, dictionary, name), state["model"]
    head = {key.removeprefix(CLASSIFIER): value for key, value in weights.items() if key.startswith(CLASSIFIER)}
    weight, shares = head.get("proj.weight"), head.get("pooling.weights")
    if weight is None or shares is None or weight.ndim != 2 or shares.ndim != 1:
        raise misfit(name, f"{CLASSIFIER}proj.weight and {CLASSIFIER}pooling.weights are no head")
    if len(weight) != len(labels):
        raise misfit(name, f"its head has {len(weight)} labels and its record {len(labels)}")
    with torch.random.fork_rng(devices=[]):
        classifier = UtteranceClassifier(len(shares), weight.size(1), len(labels))
    try:
        classifier.load_state_dict({key: value.float() for key, value in head.items()})
    except RuntimeError as error:
        raise misfit(name, " ".join(str(error).split())[:200]) from error
    return ClassificationHead(classifier, labels)


def _recorded_labels(state: Mapping, dictionary: str | None, name: str) -> list[str]:
    if dictionary is not None:
        raise StarError(f"--dictionary is for CTC; {name} holds its labels: leave it out")
    recorded = state.get("task_state")
    labels = recorded.get("labels") if isinstance(recorded, Mapping) else None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise StarError(f"{name} holds no labels; give a checkpoint that the task utterance_classification wrote")
    return labels


def build_model(state: Mapping, head: ClassificationHead) -> Callable[[Tensor], list[Tensor]]:
    """Return the fine-tuned model itself of a checkpoint, as a function of one utterance (1 x samples)."""
    model = StarHubertClassifier(OmegaConf.create(sections(state["cfg"])[0]))
    model.load_state_dict(state["model"])
    model.eval()

    def log_probs(source: Tensor) -> list[Tensor]:
        return [model.get_normalized_probs(model(source), log_probs=True)]

    return log_probs


def read_labels(about: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the labels that :meth:`ClassificationHead.about` described."""
    return tuple(map(str, about["labels"]))


def embed(student: Student) -> None:
    """Give ``student`` the head :class:`EmbeddingHead`, in place of that which it was fine-tuned with, if any.

    The sum over layers is that of a fine-tuned classifier; where none was learned, all hidden states count alike.

    Raises:
        StarError: the student was fine-tuned with CTC.
    """
    if student.head is None:
        pooling = Pooling(student.config.num_layers + 1)
    elif isinstance(student.head, ClassificationHead):
        pooling = student.head.classifier.pooling
    else:
        raise StarError(
            f"export: {student.origin} is a recognizer; --embedding is for encoders and classifiers: leave it out"
        )
    student.head, student.reference = EmbeddingHead(pooling), None
