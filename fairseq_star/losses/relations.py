"""STaR's own terms: temporal Gram matrices (paper section 2; the sums are in ``losses/tgm/``), attention maps."""

from typing import Protocol, Sequence, runtime_checkable

import torch
from torch import Tensor

from fairseq_star.errors import StarError
from fairseq_star.losses.batch import Compared
from fairseq_star.losses.layer_plan import compared_numbers, compared_states, first_layerwise_state
from fairseq_star.losses.options import StarTGMConfig
from fairseq_star.losses.selection import ALL
from fairseq_star.losses.tgm import Bases, tgm_loss
from fairseq_star.losses.tgm.attention import attention_loss


@runtime_checkable
class ReducedStates(Protocol):
    """Hidden states held as coordinates in a basis of each layer, as a teacher cache may hold them."""

    def coordinates(self, numbers: Sequence[int]) -> tuple[list[Tensor], Bases]:
        """Return the coordinates of these states and what the loss needs of their bases."""


class Relations:
    """The weighted TGM and attention map losses of a batch.

    Args:
        cfg: weights, convention and distance.
        teacher_layers: the one (1-based) that each student layer learns from.

    Raises:
        StarError: options that cannot go together.
    """

    def __init__(self, cfg: StarTGMConfig, teacher_layers: list[int]):
        self.cfg, self.teacher_layers = cfg, teacher_layers
        self.convention, self.frames = str(cfg.layer_convention), str(cfg.tgm_frames)
        self.tgm = bool(cfg.layerwise_weight or cfg.intra_layer_weight)
        if self.frames != ALL and (cfg.count_padding or not self.tgm):
            raise StarError(
                f"criterion.tgm_frames={self.frames} says which frames the TGM losses compare; leave it out where "
                "their weights are 0 or criterion.count_padding=true"
            )
        student_layers = list(range(1, len(teacher_layers) + 1))
        # How many of the last layers need their attention maps.
        depth = len(student_layers) if cfg.avg_attn_weight else int(cfg.last_attn_weight > 0)
        self.attended = student_layers[len(student_layers) - depth :]
        self.teacher_attended = teacher_layers[len(teacher_layers) - depth :]

    @property
    def names(self) -> list[str]:
        """The parts of the loss that are logged."""
        tgm = ["layerwise", "intra_layer"] if self.tgm else []
        return tgm + [name for name in ("avg_attn", "last_attn") if getattr(self.cfg, f"{name}_weight")]

    @property
    def teacher_states(self) -> list[int]:
        """Numbers of the teacher's states that are read, -1 for ``projected_features``; of attention maps, the last."""
        if not self.tgm:
            return self.teacher_attended[-1:]
        return compared_numbers(self.convention, self.teacher_layers)

    def __call__(self, batch: Compared) -> Tensor | float:
        """The sum over utterances, weighted."""
        total = 0.0
        if self.tgm:
            total = total + self._tgm_loss(batch)
        if self.attended:
            total = total + self._attention_loss(batch)
        return total

    def _tgm_loss(self, batch: Compared) -> Tensor:
        student = compared_states(batch.student, self.convention)
        if isinstance(batch.teacher.hidden_states, ReducedStates):
            teacher, bases = batch.teacher.hidden_states.coordinates(self.teacher_states)
        else:
            teacher, bases = compared_states(batch.teacher, self.convention, self.teacher_layers), None
        frames = batch.student.frames
        if self.frames == ALL:
            lengths = (frames.all_counted() if self.cfg.count_padding else frames).frame_lengths
        else:
            selection = batch.select(self.frames)
            if not len(selection):  # a worker's stand-in: the loss must hang on the student all the same
                batch.log["layerwise"] = batch.log["intra_layer"] = student[0].new_zeros((), dtype=torch.float32)
                return sum(state[:, :0].sum() for state in student)
            teacher, student = selection.packed(teacher), selection.packed(student)
            lengths = [count for count in selection.counts if count]
        loss = tgm_loss(
            teacher,
            student,
            lengths,
            layerwise_weight=self.cfg.layerwise_weight,
            intra_layer_weight=self.cfg.intra_layer_weight,
            first_layerwise_state=first_layerwise_state(self.convention),
            distance=str(self.cfg.distance),
            bases=bases,
        )
        batch.log["layerwise"] = loss.layerwise.sum()
        batch.log["intra_layer"] = loss.intra_layer.sum()
        return loss.total.sum()

    def _attention_loss(self, batch: Compared) -> Tensor:
        pairs = [
            (batch.teacher.attention_maps[self.teacher_layers[number - 1]], batch.student.attention_maps[number])
            for number in self.attended
        ]
        total = 0.0
        for name, weight, maps in [
            ("avg_attn", self.cfg.avg_attn_weight, pairs),
            ("last_attn", self.cfg.last_attn_weight, pairs[-1:]),
        ]:
            if weight:
                loss = attention_loss(*zip(*maps, strict=True), batch.student.frames.frame_lengths).sum()
                batch.log[name] = loss.detach()
                total = total + weight * loss
        return total
