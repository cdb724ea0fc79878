"""A batch as teacher and student encoded it, which every loss term is computed from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from torch import Tensor, nn

from fairseq_star.encoder.modules import Encoding
from fairseq_star.losses.selection import MASKED, UNMASKED, Selection


@dataclass
class DistillationBatch:
    """Both encodings of a batch; terms add sums over utterances to ``log``."""

    teacher: Encoding
    student: Encoding
    model: nn.Module  # the student
    masked: Sequence[np.ndarray] | None  # n_b booleans for each utterance; None: no frame is masked
    log: dict[str, Tensor] = field(default_factory=dict)

    def select(self, which: str) -> Selection:
        """Return the frames ``which`` of :data:`fairseq_star.losses.selection.WHICH`."""
        return Selection.of(which, self.student.frames.frame_lengths, self.masked)

    @cached_property
    def regions(self) -> dict[str, Selection]:
        """The masked and the unmasked frames."""
        return {region: self.select(region) for region in (MASKED, UNMASKED)}

    def final_state(self, layer: int) -> Tensor:
        """Return the student's state after ``layer`` (1-based), the last one after the final norm: B x T x D."""
        states = self.student.hidden_states
        return unwrapped(self.model).finished(states[layer]) if layer == len(states) - 1 else states[layer]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return a model without what DDP wraps around it."""
    while hasattr(model, "module"):
        model = model.module
    return model
