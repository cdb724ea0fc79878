"""STaR's own terms: temporal Gram matrices (paper section 2; the sums are in ``losses/tgm/``), attention maps."""

from typing import Protocol, Sequence, runtime_checkable

import torch
from torch import Tensor

from fairseq_star.losses.batch import DistillationBatch
from fairseq_star.losses.layer_plan import compared_numbers, compared_states, first_layerwise_state
from fairseq_star.losses.options import StarTGMConfig
from fairseq_star.losses.selection import ALL, MASKED
from fairseq_star.losses.term import Pair, Term
from fairseq_star.losses.tgm import Bases, tgm_loss
from fairseq_star.losses.tgm.attention import attention_loss


@runtime_checkable
class ReducedStates(Protocol):
    """Hidden states stored as coordinates in a basis of each layer, as a teacher cache may store them."""

    def coordinates(self, numbers: Sequence[int]) -> tuple[list[Tensor], Bases]:
        """Return the coordinates of these states, and their bases for the loss."""


class TemporalGramMatrices(Term):
    """The layer-wise and the intra-layer TGM loss."""

    weights = ("layerwise_weight", "intra_layer_weight")
    meanings = {  # noqa: RUF012
        "layerwise": "how moments relate within each layer",
        "intra_layer": "how moments relate from the input of a layer to its output",
    }

    def __init__(self, cfg: StarTGMConfig, pair: Pair):
        self.cfg, self.teacher_layers = cfg, pair.teacher_layers
        self.convention, self.frames = str(cfg.layer_convention), str(cfg.tgm_frames)
        if self.frames == MASKED:
            pair.check_masked("tgm_frames")
        self.names = list(self.meanings)
        self.teacher_states = compared_numbers(self.convention, self.teacher_layers)

    def __call__(self, batch: DistillationBatch) -> Tensor:
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
            if not len(selection):  # a worker's stand-in batch: the loss must still depend on the student
                batch.log |= {name: student[0].new_zeros((), dtype=torch.float32) for name in self.names}
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


class AttentionMaps(Term):
    """The attention map loss over all layers, and over the last one."""

    weights = ("avg_attn_weight", "last_attn_weight")
    meanings = {  # noqa: RUF012
        "avg_attn": "where all layers look (attention maps)",
        "last_attn": "where the last layer looks (attention map)",
    }

    def __init__(self, cfg: StarTGMConfig, pair: Pair):
        count = len(pair.teacher_layers)
        depth = count if cfg.avg_attn_weight else 1  # how many of the last layers need their attention maps
        self.attention_layers = list(range(count - depth + 1, count + 1))
        self.teacher_attention_layers = list(pair.teacher_layers[count - depth :])
        self.teacher_states = self.teacher_attention_layers[-1:]  # not read, but the teacher must run up to it
        self.weight_of = {name: getattr(cfg, f"{name}_weight") for name in self.meanings}
        self.names = [name for name, weight in self.weight_of.items() if weight]

    def __call__(self, batch: DistillationBatch) -> Tensor:
        layers = zip(self.teacher_attention_layers, self.attention_layers, strict=True)
        pairs = [(batch.teacher.attention_maps[taught], batch.student.attention_maps[own]) for taught, own in layers]
        total = 0.0
        for name in self.names:
            maps = pairs if name == "avg_attn" else pairs[-1:]
            loss = attention_loss(*zip(*maps, strict=True), batch.student.frames.frame_lengths).sum()
            batch.log[name] = loss.detach()
            total = total + self.weight_of[name] * loss
        return total
