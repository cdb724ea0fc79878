"""The way of distilling that STaR is compared with: each frame of each layer copied, through a linear head a layer."""

from dataclasses import dataclass, field
from typing import List, Optional

import torch
import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from torch import nn

from fairseq_star.errors import told_in_one_line
from fairseq_star.tgm.layer_plan import PAPER, compared_numbers


@dataclass
class FrameMatchingConfig(FairseqDataclass):
    """Options of ``criterion=frame_matching``."""

    teacher_layers: Optional[List[int]] = field(
        default=None,
        metadata={"help": "teacher layers (1-based) the student's layers learn from; default: all, or evenly spaced"},
    )


@register_criterion("frame_matching", dataclass=FrameMatchingConfig)
class FrameMatchingCriterion(FairseqCriterion):
    """Sum over utterances b of ``mean over l, t < n_b, d of (X_l[t, d] - (W_l Y_l[t] + b_l)[d])^2``.

    ``X_l`` and ``Y_l`` are teacher's and student's states after matched layers; the heads ``W_l, b_l`` are this
    criterion's parameters. fairseq trains them along and saves them beside the student, whose own weights they are no
    part of: they are dropped with the criterion. ``sample_size`` is the number of utterances.
    """

    def __init__(self, task, cfg: FrameMatchingConfig):
        super().__init__(task)
        self.terms = ("loss",)
        with told_in_one_line():
            self.teacher_layers = task.match_layers(cfg.teacher_layers)
        self.heads = nn.ModuleList(nn.Linear(task.student_dim, task.teacher.embed_dim) for _ in self.teacher_layers)

    def forward(self, model, sample, reduce=True):
        # The states that star_tgm asks for, so that both can use one teacher cache.
        states = compared_numbers(PAPER, self.teacher_layers)
        teacher = self.task.teach(sample, states=states, last_layer=self.teacher_layers[-1])
        lengths = teacher.frames.frame_lengths
        student = model(**sample["net_input"], frames=teacher.frames)
        losses = []
        for number, (matched, head) in enumerate(zip(self.teacher_layers, self.heads, strict=True), start=1):
            target, given = teacher.hidden_states[matched], head(student.hidden_states[number])
            losses += [F.mse_loss(given[b, :n].float(), target[b, :n].float()) for b, n in enumerate(lengths)]
        loss = torch.stack(losses).sum() / len(self.heads)
        logging_output = {
            "loss": loss.detach(),
            "ntokens": sum(lengths),
            "nsentences": len(lengths),
            "sample_size": len(lengths),
        }
        return loss, len(lengths), logging_output

    @classmethod
    def reduce_metrics(cls, logging_outputs) -> None:
        """Log the loss as its mean over utterances, over all workers and accumulated batches."""
        utterances = sum(log.get("sample_size", 0) for log in logging_outputs)
        total = sum(log.get("loss", 0) for log in logging_outputs)
        metrics.log_scalar("loss", total / max(utterances, 1), utterances, round=4)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
