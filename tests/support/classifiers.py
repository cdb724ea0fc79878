"""Tiny students of random weights with a head that gives each utterance one label, in fairseq's trainer's layout."""

from pathlib import Path

import torch

from fairseq_star.formats.student import student_values
from fairseq_star.models.classifier import ClassifierConfig, StarHubertClassifier
from tests.support import convert_cases

LABELS = ["cat", "dog", "été"]


def write(folder: Path, case: str | None = None, **settings: object) -> Path:
    """A checkpoint ``classifier.pt``: scores far from ties, layers of unlike weight.

    Args:
        case: of ``convert_cases.CASES``; the tiny student with ``settings`` when None.
    """
    student = convert_cases.student(folder, case) if case else convert_cases.tiny_student(folder, **settings)
    architecture = {"_name": student.name, **student_values(student.config, student.dropouts)}
    torch.manual_seed(3)
    model = StarHubertClassifier(ClassifierConfig(student_args=architecture, num_labels=len(LABELS)))
    model.student.load_state_dict(student.weights())
    model.classifier.pooling.weights.data.normal_()
    model.classifier.proj.weight.data *= 20
    record = {"sample_rate": student.sample_rate, "normalize": student.normalize, "labels": LABELS}
    config = {"_name": "starhubert_classifier", "student": "gone.pt", "student_args": architecture}
    task = {"_name": "utterance_classification", "data": "gone", "labels": "keyword"}
    state = {
        "args": None,
        "cfg": {
            "model": {**config, "num_labels": len(LABELS), "freeze_encoder": False, "freeze_finetune_updates": 0},
            "task": task,
            "criterion": {"_name": "label_smoothed_cross_entropy"},
        },
        "model": model.state_dict(),
        "task_state": record,
    }
    torch.save(state, folder / "classifier.pt")
    return folder / "classifier.pt"
