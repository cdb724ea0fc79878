"""What every term of the loss is handed: both encodings of a batch, and which frames are hidden."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from fairseq_star.encoder.modules import Encoding
from fairseq_star.objectives.selection import Selection


@dataclass
class Compared:
    """A batch as teacher and student encoded it; ``log`` takes what the terms have to tell, sums over utterances."""

    teacher: Encoding
    student: Encoding
    hidden: Sequence[np.ndarray] | None  # of each utterance, n_b booleans; None: nothing is hidden
    log: dict[str, Tensor] = field(default_factory=dict)

    def select(self, which: str) -> Selection:
        """Frames of the batch, ``which`` of :data:`fairseq_star.objectives.selection.WHICH`."""
        return Selection.of(which, self.student.frames.frame_lengths, self.hidden)


def bare(model: nn.Module) -> nn.Module:
    """A model without what DDP wraps around it."""
    while hasattr(model, "module"):
        model = model.module
    return model
