"""Findings on the student's layers: those that learn nothing, dead or exploding channels, lost rank.

Shapes: n frames, D channels.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_star.analysis.doctor.sample import Sample
from fairseq_star.analysis.similarity import linear_cka
from fairseq_star.fairseq_hooks.symptoms import LIKELY, SURE, Finding

DEAD = 1e-3  # standard deviation of a channel, times that of the layer's more lively ones
DEAD_SHARE = 0.1  # of the channels
HUGE = 100.0  # standard deviation of a channel, times the layer's median; and so often the teacher's own ratio
PASSED = 0.01  # distance of a layer's normalized states from those before it
RANK = 0.1  # times the teacher's
UNLIKE, STANDS_OUT = 0.9, 2.0  # distance of Gram matrices: 1 for a student of zeros; times the other layers' median
NO_LIKENESS = 0.3  # CKA with the teacher's layer, times the other layers' median


def effective_rank(states: Tensor) -> float:
    """Return exp of the entropy of the normalized eigenvalues of the covariance of n x D ``states`` (Roy and Vetterli,
    EUSIPCO 2007): the number of directions in use, and the rank of the centred Gram matrix as far as it matters."""
    centred = (states - states.mean(0)).double()
    values = torch.linalg.eigvalsh(centred.T @ centred).clamp_min(0)
    if values.sum() <= 0:
        return 0.0
    shares = values / values.sum()
    return float(torch.exp(-(shares * shares.clamp_min(1e-30).log()).sum()))


def check_layers(sample: Sample) -> Iterator[Finding]:
    """Judge each layer of the student beside the teacher's layer that it learns from."""
    errors = np.mean(sample.errors, axis=0)
    likeness = [linear_cka([of], [its])[0, 0] for of, its in zip(sample.teacher[1:], sample.student[1:], strict=True)]
    for number in range(1, len(sample.student)):
        of, its, before = sample.teacher[number], sample.student[number], sample.student[number - 1]
        spread = its.std(0)
        name = f"layer {number} of the student"
        mend = (
            "look at what is special about it (model.layer_*, criterion.teacher_layers, layers frozen or edited), and "
            "train on with checkpoint.finetune_from_model"
        )
        if (rank := effective_rank(its)) < max(1.5, RANK * effective_rank(of)) and effective_rank(of) > 2:
            yield Finding(
                "layer-without-rank",
                f"{name} uses {rank:.1f} directions for {len(its):,} frames, where the teacher's uses "
                f"{effective_rank(of):.1f}",
                SURE,
                mend,
            )
        elif _change(before, its) < PASSED:
            yield Finding("layer-passes-on", f"{name} hands on its input as it is", SURE, mend)
        elif _stands_out(errors, number - 1) or likeness[number - 1] < NO_LIKENESS * np.median(likeness):
            yield Finding(
                "layer-does-not-learn",
                f"{name} is unlike its teacher layer: distance of Gram matrices {errors[number - 1]:.2f} (others: "
                f"{np.median(np.delete(errors, number - 1)):.2f}), CKA {likeness[number - 1]:.2f} (others: "
                f"{np.median(np.delete(likeness, number - 1)):.2f})",
                LIKELY,
                mend,
            )
        lively, middle = float(spread.quantile(0.9)), float(spread.median())
        if lively > 0 and (dead := float((spread < DEAD * lively).float().mean())) > DEAD_SHARE:
            yield Finding(
                "dead-channels",
                f"{dead:.0%} of the channels of {name} are constant",
                SURE,
                "lower optimization.lr, or make the student narrower (model.encoder_embed_dim)",
            )
        spread_of = of.std(0)
        ratios = [float(one.max() / one.median().clamp_min(1e-12)) for one in (spread, spread_of)]
        if middle > 0 and ratios[0] > HUGE * max(1.0, ratios[1] / 10):
            yield Finding(
                "exploding-channels",
                f"a channel of {name} varies {ratios[0]:,.0f} times as much as its median channel (teacher: "
                f"{ratios[1]:.0f})",
                LIKELY,
                "lower optimization.lr, and set optimization.clip_norm=10",
            )


def _change(before: Tensor, after: Tensor) -> float:
    """Distance of two n x D states, each frame normalized, relative to the first."""
    one, other = (F.layer_norm(states, states.shape[-1:]) for states in (before, after))
    return float((one - other).norm() / one.norm().clamp_min(1e-12))


def _stands_out(errors: np.ndarray, layer: int) -> bool:
    others = np.delete(errors, layer)
    return len(others) > 0 and errors[layer] > UNLIKE and errors[layer] > STANDS_OUT * np.median(others)
