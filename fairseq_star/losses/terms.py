"""The table of loss terms, from which a criterion is built by its options."""

import math
from dataclasses import fields

from fairseq_star.errors import StarError
from fairseq_star.losses.frames import FramePrediction
from fairseq_star.losses.options import StarTGMConfig
from fairseq_star.losses.relations import AttentionMaps, TemporalGramMatrices
from fairseq_star.losses.selection import ALL
from fairseq_star.losses.term import Pair, Term
from fairseq_star.losses.units import UnitPrediction

# Their order is that of the heads among a criterion's parameters: checkpoints rely on it.
TERMS: tuple[type[Term], ...] = (TemporalGramMatrices, AttentionMaps, FramePrediction, UnitPrediction)
WEIGHTS = tuple(name for term in TERMS for name in term.weights)
MEANINGS = {"loss": "the sum that training lowers", **{k: text for term in TERMS for k, text in term.meanings.items()}}
"""Every value that the criterion may log, in the order of the report, and its meaning for a reader."""


def build_terms(cfg: StarTGMConfig, pair: Pair) -> list[Term]:
    """Build the terms whose weights are above 0.

    Raises:
        StarError: a weight that is no number from 0 on, none above 0, or options that a term cannot meet.
    """
    for option in fields(StarTGMConfig):
        if option.name.endswith("_weight") and not 0 <= getattr(cfg, option.name) < math.inf:
            raise StarError(f"criterion.{option.name}={getattr(cfg, option.name)} must be a number from 0 on")
    if not any(getattr(cfg, name) for name in WEIGHTS):
        raise StarError(f"criterion: {', '.join(WEIGHTS)} are all 0, so there is nothing to learn")
    if str(cfg.tgm_frames) != ALL and (cfg.count_padding or not TemporalGramMatrices.is_weighted(cfg)):
        raise StarError(
            f"criterion.tgm_frames={cfg.tgm_frames} says which frames the TGM losses compare; leave it out where "
            "their weights are 0 or criterion.count_padding=true"
        )
    return [term(cfg, pair) for term in TERMS if term.is_weighted(cfg)]
