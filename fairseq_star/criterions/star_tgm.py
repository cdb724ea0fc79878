"""The STaR loss as a fairseq criterion: asks teacher and student, and sums the terms of ``fairseq_star/objectives``."""

import logging

from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.logging import metrics
from torch import nn

from fairseq_star.encoder.unit_head import UnitHead
from fairseq_star.errors import StarError, told_in_one_line
from fairseq_star.objectives.batch import Compared, bare
from fairseq_star.objectives.frames import frame_loss
from fairseq_star.objectives.options import FRAMES, UNITS, StarTGMConfig, check_layers, check_weights
from fairseq_star.objectives.relations import Relations
from fairseq_star.objectives.selection import MASKED, UNMASKED
from fairseq_star.objectives.terms import TERMS
from fairseq_star.objectives.units import find_units, unit_loss
from fairseq_star.training.resuming import TEACHER
from fairseq_star.view.student_view import HIDDEN

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
        self.begin_anew = False  # with heads as they are drawn, whatever the checkpoint of the start has
        with told_in_one_line():
            check_weights(cfg)
            self.teacher_layers = task.match_layers(cfg.teacher_layers)
            self.relations = Relations(cfg, self.teacher_layers)
            self._check_task(task)
            self._make_frame_heads(task)
            self._make_unit_heads(task)
        units = zip(("units", "units_unmasked"), UNITS, strict=True)
        others = [*self.relations.names, *(name for name, weight in units if getattr(cfg, weight))]
        # Frames alone are the loss itself.
        self.terms = ("loss", *others, *(["frames"] if self.frame_pairs and others else []))
        self.teacher_states = sorted(
            {*self.relations.teacher_states, *(t for t, _ in self.frame_pairs), *(unit.layer for unit in self.units)}
        )
        self.last_layer = self.teacher_states[-1]

    def _check_task(self, task) -> None:
        if task.teacher_cache is not None and (self.relations.attended or self.cfg.count_padding):
            raise StarError(
                "task.teacher_cache keeps the hidden states of valid frames alone; leave it out, or set "
                "criterion.avg_attn_weight=0, criterion.last_attn_weight=0 and criterion.count_padding=false"
            )
        asking = [name for name in ("tgm_frames",) if str(self.cfg.tgm_frames) == MASKED]
        asking += [name for name in ("unit_weight",) if self.cfg.unit_weight]
        if asking and not task.cfg.mask_prob:
            raise StarError(
                f"criterion.{asking[0]} is about hidden frames, and none is hidden; set task.mask_prob, or for units "
                "criterion.unit_unmasked_weight instead"
            )

    def _make_frame_heads(self, task) -> None:
        cfg, depth = self.cfg, task.teacher.num_layers
        self.frame_pairs: list[tuple[int, int]] = []  # teacher layer, student layer
        if not any(getattr(cfg, name) for name in FRAMES):
            return
        layers = self.teacher_layers if cfg.frame_layers is None else cfg.frame_layers
        layers = check_layers("frame_layers", layers, depth, len(layers))
        students = cfg.frame_student_layers
        if students is None:
            if not set(layers) <= set(self.teacher_layers):
                raise StarError(
                    f"criterion.frame_layers={layers}: no layers of the student are matched to all of them; name those "
                    "that predict them in criterion.frame_student_layers"
                )
            students = [self.teacher_layers.index(layer) + 1 for layer in layers]
        students = check_layers("frame_student_layers", students, task.student_layers, len(layers))
        self.frame_pairs = list(zip(layers, students, strict=True))
        self.heads = nn.ModuleList(nn.Linear(task.student_dim, task.teacher.embed_dim) for _ in layers)

    def _make_unit_heads(self, task) -> None:
        cfg = self.cfg
        self.units, self.unit_layers = [], []
        if not (cfg.unit_weight or cfg.unit_unmasked_weight):
            return
        if not cfg.units:
            raise StarError("criterion.units: name what to predict, 'head' or files of fairseq-star units")
        if cfg.unit_dim < 1:
            raise StarError(f"criterion.unit_dim={cfg.unit_dim} must be 1 or more")
        digest = task.state_dict().get(TEACHER)
        self.units = find_units(list(cfg.units), task.teacher, digest, cfg.unit_temperature)
        layers = [task.student_layers] * len(self.units)
        if cfg.unit_student_layers is not None:
            layers = check_layers("unit_student_layers", cfg.unit_student_layers, task.student_layers, len(self.units))
        self.unit_layers = layers
        self.unit_heads = nn.ModuleList(UnitHead(task.student_dim, unit.num_units, cfg.unit_dim) for unit in self.units)

    def forward(self, model, sample, reduce=True):
        teacher = self.task.teach(
            sample,
            states=self.teacher_states,
            last_layer=self.last_layer,
            attention_layers=self.relations.teacher_attended,
        )
        frames = teacher.frames
        student = model(**sample["net_input"], frames=frames, attention_layers=self.relations.attended)
        utterances = len(frames.frame_lengths)
        batch = Compared(teacher, student, sample.get(HIDDEN))
        total = self.relations(batch)
        if self.frame_pairs:
            total = total + self._frame_loss(batch)
        if self.units:
            total = total + self._unit_loss(model, batch)
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

    def _frame_loss(self, batch: Compared):
        pairs = [
            (batch.teacher.hidden_states[teacher], batch.student.hidden_states[student], head)
            for (teacher, student), head in zip(self.frame_pairs, self.heads, strict=True)
        ]
        loss = frame_loss(
            pairs,
            {region: batch.select(region) for region in (MASKED, UNMASKED)},
            distances={name.split("_")[1]: getattr(self.cfg, name) for name in FRAMES},
            regions={MASKED: self.cfg.frame_masked_weight, UNMASKED: self.cfg.frame_unmasked_weight},
        )
        if "frames" in self.terms:
            batch.log["frames"] = loss.detach()
        return loss

    def _unit_loss(self, model, batch: Compared):
        states = dict(enumerate(batch.student.hidden_states))
        if (last := len(states) - 1) in self.unit_layers:
            states[last] = bare(model).finished(states[last])
        pairs = [
            (unit, batch.teacher.hidden_states[unit.layer], states[number], head)
            for unit, number, head in zip(self.units, self.unit_layers, self.unit_heads, strict=True)
        ]
        loss, logged = unit_loss(
            pairs,
            {region: batch.select(region) for region in (MASKED, UNMASKED)},
            {MASKED: self.cfg.unit_weight, UNMASKED: self.cfg.unit_unmasked_weight},
        )
        batch.log.update(logged)
        return loss

    def load_state_dict(self, state_dict, strict=True):
        """The heads of a checkpoint, or of none where the run begins with weights alone that know no such heads."""
        if self.begin_anew:
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
