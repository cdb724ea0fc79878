"""Data of heat maps: temporal Gram matrices of teacher and student, with the audio and labels of the utterance."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fairseq_star.encoder.frames import FrameGeometry
from fairseq_star.errors import StarError
from fairseq_star.manifest import SAMPLE_RATE

MAX_SECONDS = 8.0


@dataclass
class LayerMaps:
    """Temporal Gram matrices (T x T) of a student layer and of the teacher layer it is matched with."""

    student_layer: int  # 1-based
    teacher_layer: int
    teacher: np.ndarray
    student: np.ndarray
    before: np.ndarray | None = None  # the untrained student's
    masked: np.ndarray | None = None  # the student's with masked frames, as in training


@dataclass
class UtteranceMaps:
    """Heat maps of one utterance, with what is drawn around them."""

    name: str
    samples: np.ndarray  # mono at SAMPLE_RATE, at most MAX_SECONDS, peak 1
    geometry: FrameGeometry
    phones: list[tuple[int, int, str]]  # first frame, frame after the last, label; empty without labels
    transcript: str  # empty without one
    layers: list[LayerMaps]
    mask_indices: np.ndarray | None = None  # bool, T: True = masked in `LayerMaps.masked`

    def seconds(self, frame: int) -> float:
        """Return the time where a frame begins, with adjacent frames centred on their receptive fields."""
        middle = self.geometry.receptive_field / 2 + frame * self.geometry.downsample_rate
        return (middle - self.geometry.downsample_rate / 2) / SAMPLE_RATE


def choose_layers(num_layers: int, chosen: list[int] | None) -> list[int]:
    """Return the student layers (1-based) to draw: ``chosen``, or the first, the middle and the last.

    Raises:
        StarError: a layer that the student does not have.
    """
    for layer in chosen or []:
        if not 1 <= layer <= num_layers:
            raise StarError(f"--layers {layer}: the student has layers 1 to {num_layers}")
    return sorted(set(chosen or [1, (num_layers + 1) // 2, num_layers]))


def tgm(states: Tensor) -> Tensor:
    """Return the temporal Gram matrix X X^T (T x T, float32) of one utterance (T x D)."""
    states = states.float()
    return states @ states.T
