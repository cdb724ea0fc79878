"""Temporal Gram matrix (TGM) losses of STaR as pure functions of tensors and frame counts.

Source: Jang, Kim, Kim, "STaR: Distilling Speech Temporal Relation for Lightweight Speech Self-Supervised Learning
Models", ICASSP 2024, arXiv 2312.09040. Nothing in this package imports fairseq.

Shape legend of all its files: B utterances, N utterances computed together, T frames, M states (layers and, in front
of them, the input of the first one), D_t and D_s the widths of teacher and student.
"""

from fairseq_star.losses.tgm.bases import Bases
from fairseq_star.losses.tgm.cost import FormCost, choose_form, form_cost
from fairseq_star.losses.tgm.loss import TGMLoss, tgm_loss

__all__ = ["Bases", "FormCost", "TGMLoss", "choose_form", "form_cost", "tgm_loss"]
