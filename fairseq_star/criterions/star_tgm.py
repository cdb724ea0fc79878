"""The STaR loss as a fairseq criterion: runs teacher and student, and sums the terms of ``fairseq_star/losses``."""

import logging

from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.logging import metrics

from fairseq_star.checkpoint import shapes
from fairseq_star.data.augment.student import MASKED_FRAMES
from fairseq_star.errors import StarError, exit_on_star_error
from fairseq_star.losses.batch import DistillationBatch
from fairseq_star.losses.layer_plan import match_layers
from fairseq_star.losses.options import StarTGMConfig
from fairseq_star.losses.term import Pair
from fairseq_star.losses.terms import MEANINGS, build_terms

logger = logging.getLogger(__name__)


@register_criterion("star_tgm", dataclass=StarTGMConfig)
class StarTGMCriterion(FairseqCriterion):
    """Sum over utterances of the weighted terms; ``sample_size`` is the number of utterances.

    An utterance's loss is a mean over its own frames and layers, so the gradient is the same however a batch is padded,
    split over devices or accumulated. Heads of the units and of the frames are this criterion's parameters: fairseq
    trains them with the student and saves them next to its weights.
    """

    def __init__(self, task, cfg: StarTGMConfig):
        super().__init__(task)
        self.cfg = cfg
        self.weights_alone = False  # the run takes over a student's weights only: heads that do not fit start anew
        with exit_on_star_error():
            provider = task.provider
            teacher = provider.encoder
            self.teacher_layers = match_layers(teacher.num_layers, task.student_layers, cfg.teacher_layers)
            pair = Pair(
                teacher,
                provider.digest,
                self.teacher_layers,
                task.student_layers,
                task.student_dim,
                masks_frames=bool(task.cfg.mask_prob),
            )
            self.terms = build_terms(cfg, pair)
            self.teacher_states = self._needed("teacher_states")
            self.teacher_attention_layers = self._needed("teacher_attention_layers")
            self.attention_layers = self._needed("attention_layers")
            if provider.cache is not None and (self.attention_layers or cfg.count_padding):
                raise StarError(
                    "task.teacher_cache keeps the hidden states of valid frames alone; leave it out, or set "
                    "criterion.avg_attn_weight=0, criterion.last_attn_weight=0 and criterion.count_padding=false"
                )
        for term in self.terms:
            if term.heads is not None:
                setattr(self, term.heads_name, term.heads)  # the name they are saved under
        self.logged = ("loss", *(name for term in self.terms for name in term.names))

    def _needed(self, name: str) -> list[int]:
        return sorted({number for term in self.terms for number in getattr(term, name)})

    def forward(self, model, sample, reduce=True):
        teacher = self.task.provider.encode(
            sample,
            states=self.teacher_states,
            last_layer=self.teacher_states[-1],
            attention_layers=self.teacher_attention_layers,
        )
        frames = teacher.frames
        student = model(**sample["net_input"], frames=frames, attention_layers=self.attention_layers)
        utterances = len(frames.frame_lengths)
        batch = DistillationBatch(teacher, student, model, sample.get(MASKED_FRAMES))
        total = sum(term(batch) for term in self.terms)
        logging_output = {
            "ntokens": sum(frames.frame_lengths),
            "batch_frames": utterances * student.hidden_states[-1].size(1),
            "nsentences": utterances,
            "sample_size": utterances,
            **batch.log,
            "loss": total.detach(),
        }
        if self.task.cfg.mask_prob:
            logging_output[MASKED_FRAMES] = sum(int(of_one.sum()) for of_one in batch.masked or ())
        return total, utterances, logging_output

    def load_state_dict(self, state_dict, strict=True):
        """Load the heads of a checkpoint; with :attr:`weights_alone` only where they fit."""
        if self.weights_alone and shapes(state_dict) != shapes(self.state_dict()):
            logger.info("the criterion's heads begin anew: the checkpoint has none that fit")
            return None
        return super().load_state_dict(state_dict, strict)

    @classmethod
    def reduce_metrics(cls, logging_outputs) -> None:
        """Log each term as its mean over utterances, over all workers and accumulated batches; the shares of frames
        that are padding, and masked, in percent."""

        # Numbers of the host where there is one worker; summed over several they come as tensors.
        def total_of(name: str) -> float:
            return float(sum(log.get(name, 0) for log in logging_outputs))

        utterances, batch_frames, own_frames = map(total_of, ("sample_size", "batch_frames", "ntokens"))
        if batch_frames:
            padding = 100 * (1 - own_frames / batch_frames)
            metrics.log_scalar("padding", padding, batch_frames, priority=185, round=2)
        if any(MASKED_FRAMES in log for log in logging_outputs):
            masked = 100 * total_of(MASKED_FRAMES) / max(own_frames, 1)
            metrics.log_scalar("masked", masked, own_frames, priority=186, round=2)
        for name in MEANINGS:
            if any(name in log for log in logging_outputs):
                total = sum(log.get(name, 0) for log in logging_outputs)
                metrics.log_scalar(name, total / max(utterances, 1), utterances, round=4)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
