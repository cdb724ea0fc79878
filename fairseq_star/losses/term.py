"""Base class of the loss terms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.errors import StarError
from fairseq_star.losses.batch import DistillationBatch
from fairseq_star.losses.options import StarTGMConfig


@dataclass(frozen=True)
class Pair:
    """The teacher and the student that a run's terms compare."""

    teacher: FrozenEncoder
    teacher_digest: str | None  # of its files, as centroids record it
    teacher_layers: Sequence[int]  # the teacher layer (1-based) that each student layer learns from
    student_layers: int
    student_dim: int
    masks_frames: bool  # whether the student's frames are masked

    def check_masked(self, option: str) -> None:
        """Check that frames are masked, for an option that needs masked ones.

        Raises:
            StarError: none is masked.
        """
        if not self.masks_frames:
            raise StarError(
                f"criterion.{option} is about masked frames, and none is masked; set task.mask_prob, or for units "
                "criterion.unit_unmasked_weight instead"
            )


class Term:
    """A weighted part of the loss, built where one of its weights is above 0.

    Attributes:
        weights: names of the options that weigh it.
        meanings: every value it may log, and what that means to a reader of the report.
        heads_name: name under which the criterion, and so a checkpoint, has :attr:`heads`.
        names: values it logs with a run's options.
        teacher_states: numbers of the teacher's hidden states that it reads, -1 for ``projected_features``.
        teacher_attention_layers, attention_layers: layers (1-based) of teacher and student whose attention maps it
            reads.
        heads: modules trained along with the student, which are no part of it.
    """

    weights: ClassVar[tuple[str, ...]]
    meanings: ClassVar[Mapping[str, str]]
    heads_name: ClassVar[str | None] = None

    names: Sequence[str]
    teacher_states: Sequence[int]
    teacher_attention_layers: Sequence[int] = ()
    attention_layers: Sequence[int] = ()
    heads: nn.ModuleList | None = None

    def __init__(self, cfg: StarTGMConfig, pair: Pair):
        """Read the options.

        Raises:
            StarError: options that cannot be met.
        """
        raise NotImplementedError

    def __call__(self, batch: DistillationBatch) -> Tensor:
        """Return the weighted sum over utterances, and log its parts into ``batch.log``."""
        raise NotImplementedError

    @classmethod
    def is_weighted(cls, cfg: StarTGMConfig) -> bool:
        """Return whether one of its weights is above 0."""
        return any(getattr(cfg, name) for name in cls.weights)
