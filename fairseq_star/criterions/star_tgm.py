"""The STaR loss as a fairseq criterion (paper section 2; the sums themselves are in ``fairseq_star/tgm/``)."""

import math
from dataclasses import dataclass, field
from typing import List, Optional

from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor

from fairseq_star.encoder.modules import Encoding
from fairseq_star.errors import StarError, told_in_one_line
from fairseq_star.tgm import tgm_loss
from fairseq_star.tgm.attention import attention_loss
from fairseq_star.tgm.layer_plan import CONVENTIONS, compared_numbers, compared_states, first_layerwise_state


@dataclass
class StarTGMConfig(FairseqDataclass):
    """Options of ``criterion=star_tgm``."""

    layerwise_weight: float = field(default=1.0, metadata={"help": "weight of the layer-wise TGM loss"})
    intra_layer_weight: float = field(default=1.0, metadata={"help": "weight of the intra-layer TGM loss"})
    avg_attn_weight: float = field(
        default=0.0, metadata={"help": "weight of the attention map loss over all layers; 0: no map is formed"}
    )
    last_attn_weight: float = field(
        default=0.0, metadata={"help": "weight of the attention map loss of the last layer; 0: no map is formed"}
    )
    layer_convention: ChoiceEnum(CONVENTIONS) = field(
        default="paper",
        metadata={
            "help": "paper: layer-wise over layers 1..L, pairs from the first layer's input on; reimplementation: the "
            "encoder's input before the positional convolution counts as a layer and begins the pairs"
        },
    )
    distance: ChoiceEnum(["mse", "l1", "kl"]) = field(
        default="mse", metadata={"help": "distance between temporal Gram matrices"}
    )
    count_padding: bool = field(
        default=False,
        metadata={"help": "take means over padded frames too, as the re-implementation does; off: exact for any batch"},
    )
    teacher_layers: Optional[List[int]] = field(
        default=None,
        metadata={"help": "teacher layers (1-based) the student's layers learn from; default: all, or evenly spaced"},
    )


WEIGHTS = ("layerwise_weight", "intra_layer_weight", "avg_attn_weight", "last_attn_weight")


def _terms(cfg: StarTGMConfig) -> list[str]:
    """The parts of the loss that are logged."""
    tgm = ["layerwise", "intra_layer"] if cfg.layerwise_weight or cfg.intra_layer_weight else []
    return tgm + [name for name in ("avg_attn", "last_attn") if getattr(cfg, f"{name}_weight")]


@register_criterion("star_tgm", dataclass=StarTGMConfig)
class StarTGMCriterion(FairseqCriterion):
    """Sum over utterances of the weighted TGM (and attention map) losses; ``sample_size`` is the number of utterances.

    An utterance's loss is a mean over its own frames and layers, so the gradient is the same however a batch is padded,
    split over devices or accumulated.
    """

    def __init__(self, task, cfg: StarTGMConfig):
        super().__init__(task)
        self.cfg = cfg
        self.convention = str(cfg.layer_convention)
        with told_in_one_line():
            for name in WEIGHTS:
                if not 0 <= getattr(cfg, name) < math.inf:
                    raise StarError(f"criterion.{name}={getattr(cfg, name)} must be a number from 0 on")
            if not any(getattr(cfg, name) for name in WEIGHTS):
                raise StarError(f"criterion: {', '.join(WEIGHTS)} are all 0, so there is nothing to learn")
            self.terms = ("loss", *_terms(cfg))
            self.teacher_layers = task.match_layers(cfg.teacher_layers)
            self.student_layers = list(range(1, len(self.teacher_layers) + 1))
            # How many of the last layers need their attention maps.
            self.attention_depth = len(self.student_layers) if cfg.avg_attn_weight else int(cfg.last_attn_weight > 0)
            if task.teacher_cache is not None and (self.attention_depth or cfg.count_padding):
                raise StarError(
                    "task.teacher_cache keeps the hidden states of valid frames alone; leave it out, or set "
                    "criterion.avg_attn_weight=0, criterion.last_attn_weight=0 and criterion.count_padding=false"
                )

    def forward(self, model, sample, reduce=True):
        matched, attended = self.teacher_layers, len(self.teacher_layers) - self.attention_depth
        teacher = self.task.teach(
            sample,
            states=compared_numbers(self.convention, matched),
            last_layer=matched[-1],
            attention_layers=matched[attended:],
        )
        frames = teacher.frames
        student = model(**sample["net_input"], frames=frames, attention_layers=self.student_layers[attended:])
        utterances = len(frames.frame_lengths)
        logging_output = {
            "ntokens": sum(frames.frame_lengths),
            "batch_frames": utterances * student.hidden_states[-1].size(1),
            "nsentences": utterances,
            "sample_size": utterances,
        }

        total = 0.0
        if self.cfg.layerwise_weight or self.cfg.intra_layer_weight:
            total = total + self._tgm_loss(teacher, student, logging_output)
        if self.attention_depth:
            total = total + self._attention_loss(teacher, student, logging_output)
        logging_output["loss"] = total.detach()
        return total, utterances, logging_output

    def _tgm_loss(self, teacher: Encoding, student: Encoding, logging_output: dict) -> Tensor:
        counted = student.frames.all_counted() if self.cfg.count_padding else student.frames
        loss = tgm_loss(
            compared_states(teacher, self.convention, self.teacher_layers),
            compared_states(student, self.convention),
            counted.frame_lengths,
            layerwise_weight=self.cfg.layerwise_weight,
            intra_layer_weight=self.cfg.intra_layer_weight,
            first_layerwise_state=first_layerwise_state(self.convention),
            distance=str(self.cfg.distance),
        )
        logging_output["layerwise"] = loss.layerwise.sum()
        logging_output["intra_layer"] = loss.intra_layer.sum()
        return loss.total.sum()

    def _attention_loss(self, teacher: Encoding, student: Encoding, logging_output: dict) -> Tensor:
        pairs = [
            (teacher.attention_maps[self.teacher_layers[number - 1]], student.attention_maps[number])
            for number in self.student_layers[-self.attention_depth :]
        ]
        total = 0.0
        for name, weight, maps in [
            ("avg_attn", self.cfg.avg_attn_weight, pairs),
            ("last_attn", self.cfg.last_attn_weight, pairs[-1:]),
        ]:
            if weight:
                loss = attention_loss(*zip(*maps, strict=True), student.frames.frame_lengths).sum()
                logging_output[name] = loss.detach()
                total = total + weight * loss
        return total

    @classmethod
    def reduce_metrics(cls, logging_outputs) -> None:
        """Log each term as its mean over utterances, over all workers and accumulated batches; the share of frames
        that are padding in percent."""

        # Numbers of the host where there is one worker; summed over several they come as tensors.
        def total_of(name: str) -> float:
            return float(sum(log.get(name, 0) for log in logging_outputs))

        utterances, batch_frames = total_of("sample_size"), total_of("batch_frames")
        if batch_frames:
            padding = 100 * (1 - total_of("ntokens") / batch_frames)
            metrics.log_scalar("padding", padding, batch_frames, priority=185, round=2)
        for name in ("loss", "layerwise", "intra_layer", "avg_attn", "last_attn"):
            if any(name in log for log in logging_outputs):
                total = sum(log.get(name, 0) for log in logging_outputs)
                metrics.log_scalar(name, total / max(utterances, 1), utterances, round=4)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
