"""What a heat map shows: temporal Gram matrices of teacher and student, with the sound they belong to."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fairseq_star.encoder.frames import FrameGeometry
from fairseq_star.errors import StarError
from fairseq_star.manifest import SAMPLE_RATE

MAX_SECONDS = 8.0


@dataclass
class LayerMaps:
    """Temporal Gram matrices (T x T) of one student layer and of the teacher layer it learned from."""

    student_layer: int  # 1-based
    teacher_layer: int
    teacher: np.ndarray
    student: np.ndarray
    before: np.ndarray | None = None  # the untrained student's
    masked: np.ndarray | None = None  # the student's where parts of the utterance are hidden from it, as in training


@dataclass
class UtteranceMaps:
    """What the heat maps show."""

    name: str
    samples: np.ndarray  # at most MAX_SECONDS of it at SAMPLE_RATE, mono, the highest at 1 or -1
    geometry: FrameGeometry
    phones: list[tuple[int, int, str]]  # first frame, frame after the last, label; empty without labels
    transcript: str  # empty without one
    layers: list[LayerMaps]
    hidden: np.ndarray | None = None  # T booleans, the frames that are hidden in `LayerMaps.masked`

    def seconds(self, frame: int) -> float:
        """When a frame begins: frames lie side by side, each around the middle of the samples it sees."""
        middle = self.geometry.receptive_field / 2 + frame * self.geometry.downsample_rate
        return (middle - self.geometry.downsample_rate / 2) / SAMPLE_RATE


def choose_layers(num_layers: int, chosen: list[int] | None) -> list[int]:
    """Student layers (1-based) to draw: ``chosen``, or the first, the middle and the last.

    Raises:
        StarError: a layer the student has not.
    """
    for layer in chosen or []:
        if not 1 <= layer <= num_layers:
            raise StarError(f"--layers {layer}: the student has layers 1 to {num_layers}")
    return sorted(set(chosen or [1, (num_layers + 1) // 2, num_layers]))


def tgm(states: Tensor) -> Tensor:
    """Temporal Gram matrix X X^T of one utterance (T x D): T x T, float32 or wider."""
    states = states.float()
    return states @ states.T
