"""What every term of the loss is made from and handed: sizes of both encoders; both encodings of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from torch import Tensor, nn

from fairseq_star.encoder.modules import Encoding
from fairseq_star.losses.selection import MASKED, UNMASKED, Selection


@dataclass(frozen=True)
class Sizes:
    """Of teacher and student, and which of their layers are matched."""

    teacher_layers: int
    teacher_dim: int
    student_layers: int
    student_dim: int
    matched: Sequence[int]  # the teacher layer (1-based) that each student layer learns from


@dataclass
class Compared:
    """A batch as teacher and student encoded it; ``log`` takes what the terms have to tell, sums over utterances."""

    teacher: Encoding
    student: Encoding
    model: nn.Module  # the student
    hidden: Sequence[np.ndarray] | None  # of each utterance, n_b booleans; None: nothing is hidden
    log: dict[str, Tensor] = field(default_factory=dict)

    def select(self, which: str) -> Selection:
        """Frames of the batch, ``which`` of :data:`fairseq_star.losses.selection.WHICH`."""
        return Selection.of(which, self.student.frames.frame_lengths, self.hidden)

    @cached_property
    def regions(self) -> dict[str, Selection]:
        """The hidden and the clear frames."""
        return {region: self.select(region) for region in (MASKED, UNMASKED)}

    def finished_state(self, layer: int) -> Tensor:
        """The student's state after ``layer`` (1-based), the last one as whoever uses a student takes it: B x T x D."""
        states = self.student.hidden_states
        return bare(self.model).finished(states[layer]) if layer == len(states) - 1 else states[layer]


def bare(model: nn.Module) -> nn.Module:
    """A model without what DDP wraps around it."""
    while hasattr(model, "module"):
        model = model.module
    return model
