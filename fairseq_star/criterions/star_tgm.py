"""The STaR loss as a fairseq criterion: asks teacher and student, and sums the terms of ``fairseq_star/losses``."""

import logging

from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.logging import metrics

from fairseq_star.data.augment.student_view import HIDDEN
from fairseq_star.errors import StarError, told_in_one_line
from fairseq_star.formats.checkpoint import shapes
from fairseq_star.formats.student import TEACHER
from fairseq_star.losses.batch import Compared, Sizes
from fairseq_star.losses.frames import FrameCopies
from fairseq_star.losses.options import StarTGMConfig, check_weights
from fairseq_star.losses.relations import Relations
from fairseq_star.losses.selection import MASKED
from fairseq_star.losses.terms import TERMS
from fairseq_star.losses.units import UnitPredictions

logger = logging.getLogger(__name__)


@register_criterion("star_tgm", dataclass=StarTGMConfig)
class StarTGMCriterion(FairseqCriterion):
    """Sum over utterances of the weighted terms; ``sample_size`` is the number of utterances.

    An utterance's loss is a mean over its own frames and layers, so the gradient is the same however a batch is padded,
    split over devices or accumulated. Heads of the units and of the frames are this criterion's parameters: fairseq
    trains them along and saves them beside the student, whose own weights they are no part of.
    """

    def __init__(self, task, cfg: StarTGMConfig):
        super().__init__(task)
        self.cfg = cfg
        self.weights_alone = False  # whether the run takes over a student alone: heads that do not fit begin anew
        with told_in_one_line():
            check_weights(cfg)
            self.teacher_layers = task.match_layers(cfg.teacher_layers)
            teacher = task.teacher
            sizes = Sizes(
                teacher.num_layers, teacher.embed_dim, task.student_layers, task.student_dim, self.teacher_layers
            )
            self.relations = Relations(cfg, self.teacher_layers)
            self._check_task(task)
            frames = FrameCopies.of(cfg, sizes)
            units = UnitPredictions.of(cfg, sizes, teacher, task.state_dict().get(TEACHER))
        # Under these names they are saved.
        self.heads = frames and frames.heads
        self.unit_heads = units and units.heads
        self.objectives = [term for term in (self.relations, frames, units) if term is not None]
        self.terms = ("loss", *(name for term in self.objectives for name in term.names))
        self.teacher_states = sorted({number for term in self.objectives for number in term.teacher_states})

    def _check_task(self, task) -> None:
        if task.teacher_cache is not None and (self.relations.attended or self.cfg.count_padding):
            raise StarError(
                "task.teacher_cache keeps the hidden states of valid frames alone; leave it out, or set "
                "criterion.avg_attn_weight=0, criterion.last_attn_weight=0 and criterion.count_padding=false"
            )
        about_hidden = {"tgm_frames": str(self.cfg.tgm_frames) == MASKED, "unit_weight": bool(self.cfg.unit_weight)}
        if any(about_hidden.values()) and not task.cfg.mask_prob:
            option = next(name for name, asked in about_hidden.items() if asked)
            raise StarError(
                f"criterion.{option} is about hidden frames, and none is hidden; set task.mask_prob, or for units "
                "criterion.unit_unmasked_weight instead"
            )

    def forward(self, model, sample, reduce=True):
        teacher = self.task.teach(
            sample,
            states=self.teacher_states,
            last_layer=self.teacher_states[-1],
            attention_layers=self.relations.teacher_attended,
        )
        frames = teacher.frames
        student = model(**sample["net_input"], frames=frames, attention_layers=self.relations.attended)
        utterances = len(frames.frame_lengths)
        batch = Compared(teacher, student, model, sample.get(HIDDEN))
        total = sum(term(batch) for term in self.objectives)
        logging_output = {
            "ntokens": sum(frames.frame_lengths),
            "batch_frames": utterances * student.hidden_states[-1].size(1),
            "nsentences": utterances,
            "sample_size": utterances,
            **batch.log,
            "loss": total.detach(),
        }
        if self.task.cfg.mask_prob:
            logging_output["hidden_frames"] = sum(int(of_one.sum()) for of_one in batch.hidden or ())
        return total, utterances, logging_output

    def load_state_dict(self, state_dict, strict=True):
        """The heads of a checkpoint; with :attr:`weights_alone` only where they fit."""
        if self.weights_alone and shapes(state_dict) != shapes(self.state_dict()):
            logger.info("the criterion's heads begin anew: the checkpoint has none that fit")
            return None
        return super().load_state_dict(state_dict, strict)

    @classmethod
    def reduce_metrics(cls, logging_outputs) -> None:
        """Log each term as its mean over utterances, over all workers and accumulated batches; the shares of frames
        that are padding, and hidden, in percent."""

        # Numbers of the host where there is one worker; summed over several they come as tensors.
        def total_of(name: str) -> float:
            return float(sum(log.get(name, 0) for log in logging_outputs))

        utterances, batch_frames, own_frames = map(total_of, ("sample_size", "batch_frames", "ntokens"))
        if batch_frames:
            padding = 100 * (1 - own_frames / batch_frames)
            metrics.log_scalar("padding", padding, batch_frames, priority=185, round=2)
        if any("hidden_frames" in log for log in logging_outputs):
            hidden = 100 * total_of("hidden_frames") / max(own_frames, 1)
            metrics.log_scalar("hidden", hidden, own_frames, priority=186, round=2)
        for name in TERMS:
            if any(name in log for log in logging_outputs):
                total = sum(log.get(name, 0) for log in logging_outputs)
                metrics.log_scalar(name, total / max(utterances, 1), utterances, round=4)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
