"""The way of distilling that STaR is compared with: each frame of each layer copied, through a linear head a layer."""

from dataclasses import dataclass

from fairseq.criterions import register_criterion

from fairseq_star.criterions.star_tgm import StarTGMCriterion
from fairseq_star.losses.layer_plan import PAPER, compared_numbers
from fairseq_star.losses.options import StarTGMConfig


@dataclass
class FrameMatchingConfig(StarTGMConfig):
    """Options of ``criterion=frame_matching``: of those that recipes name ``teacher_layers`` alone counts."""


@register_criterion("frame_matching", dataclass=FrameMatchingConfig)
class FrameMatchingCriterion(StarTGMCriterion):
    """``star_tgm`` with ``frame_mse_weight=1`` and no other term, under the name it has in older runs:

    the sum over utterances b of ``mean over l, t < n_b, d of (X_l[t, d] - (W_l Y_l[t] + b_l)[d])^2``, with ``X_l`` and
    ``Y_l`` teacher's and student's states after matched layers and heads ``W_l, b_l``.
    """

    def __init__(self, task, cfg: FrameMatchingConfig):
        frames_alone = StarTGMConfig(
            layerwise_weight=0.0, intra_layer_weight=0.0, frame_mse_weight=1.0, teacher_layers=cfg.teacher_layers
        )
        super().__init__(task, frames_alone)
        self.teacher_states = compared_numbers(PAPER, self.teacher_layers)  # so that star_tgm can use its teacher cache
