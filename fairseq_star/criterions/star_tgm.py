"""The STaR loss as a fairseq criterion (paper section 2; the sums themselves are in ``fairseq_star/tgm.py``)."""

from dataclasses import dataclass, field
from typing import List, Optional

from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.logging import metrics

from fairseq_star.errors import StarError, told_in_one_line
from fairseq_star.layers import CONVENTIONS, chain, first_layerwise
from fairseq_star.tgm import tgm_loss


@dataclass
class StarTGMConfig(FairseqDataclass):
    layerwise_weight: float = field(default=1.0, metadata={"help": "weight of the layer-wise TGM loss"})
    intra_layer_weight: float = field(default=1.0, metadata={"help": "weight of the intra-layer TGM loss"})
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


@register_criterion("star_tgm", dataclass=StarTGMConfig)
class StarTGMCriterion(FairseqCriterion):
    """Sum over utterances of the weighted TGM losses; ``sample_size`` is the number of utterances.

    An utterance's loss is a mean over its own frames and layers, so the gradient is the same however a batch is padded,
    split over devices or accumulated.
    """

    def __init__(self, task, cfg: StarTGMConfig):
        super().__init__(task)
        self.cfg = cfg
        self.convention = str(cfg.layer_convention)
        with told_in_one_line():
            for name in ("layerwise_weight", "intra_layer_weight"):
                if getattr(cfg, name) < 0:
                    raise StarError(f"criterion.{name}={getattr(cfg, name)} must not be negative")
            if cfg.layerwise_weight == cfg.intra_layer_weight == 0:
                raise StarError("criterion.layerwise_weight and criterion.intra_layer_weight are both 0: nothing to learn")
            self.teacher_layers = task.match_layers(cfg.teacher_layers)

    def forward(self, model, sample, reduce=True):
        teacher = self.task.teach(sample, last_layer=self.teacher_layers[-1])
        frames = teacher.frames
        student = model(**sample["net_input"], frames=frames)
        counted = frames.all_counted() if self.cfg.count_padding else frames
        loss = tgm_loss(
            chain(teacher, self.convention, self.teacher_layers),
            chain(student, self.convention),
            counted.frame_lengths,
            layerwise_weight=self.cfg.layerwise_weight,
            intra_layer_weight=self.cfg.intra_layer_weight,
            first_layerwise=first_layerwise(self.convention),
            distance=str(self.cfg.distance),
        )
        total = loss.total.sum()
        utterances = len(frames.frame_lengths)
        logging_output = {
            "loss": total.detach(),
            "layerwise": loss.layerwise.sum(),
            "intra_layer": loss.intra_layer.sum(),
            "ntokens": sum(frames.frame_lengths),
            "nsentences": utterances,
            "sample_size": utterances,
        }
        return total, utterances, logging_output

    @classmethod
    def reduce_metrics(cls, logging_outputs) -> None:
        """Log each term as its mean over utterances, over all workers and accumulated batches."""
        utterances = sum(log.get("sample_size", 0) for log in logging_outputs)
        for name, round_to in (("loss", 4), ("layerwise", 4), ("intra_layer", 4)):
            total = sum(log.get(name, 0) for log in logging_outputs)
            metrics.log_scalar(name, total / max(utterances, 1), utterances, round=round_to)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
