"""Frames: a teacher's states, predicted frame by frame through a linear head a layer.

With x_t the state of a teacher layer, y_t that of a student layer, W and b the layer's head and z_t = W y_t + b,

    mse     mean over d of (x_t[d] - z_t[d])^2                    (ARMHuBERT, arXiv 2305.11685)
    l1      mean over d of |x_t[d] - z_t[d]|                      (DistilHuBERT, arXiv 2110.01900, equation 1)
    cosine  -log sigmoid(cos(x_t, z_t))                           (the same)

each as a mean over the utterance's hidden frames, times ``frame_masked_weight``, plus the one over its clear frames,
times ``frame_unmasked_weight``; then a mean over layers. Nothing is read of padding.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_star.objectives.selection import MASKED, UNMASKED, Selection

Distance = Callable[[Tensor, Tensor], Tensor]  # N x D each -> N

DISTANCES: dict[str, Distance] = {
    "mse": lambda given, target: (given - target).square().mean(-1),
    "l1": lambda given, target: (given - target).abs().mean(-1),
    "cosine": lambda given, target: -F.logsigmoid(F.cosine_similarity(given, target, dim=-1)),
}


def frame_loss(
    pairs: Sequence[tuple[Tensor, Tensor, nn.Module]],
    selections: Mapping[str, Selection],
    *,
    distances: Mapping[str, float],
    regions: Mapping[str, float],
) -> Tensor:
    """The sum over utterances of their frame losses.

    Args:
        pairs: for each head the teacher's states, the student's (B x T x D each) and the head.
        selections: of the frames, by region: hidden (``masked``) and clear (``unmasked``).
        distances: weight of each of :data:`DISTANCES`; of weight 0 is not computed.
        regions: weight of each region; likewise.

    Returns:
        A scalar in float32.
    """
    total = torch.zeros((), device=pairs[0][1].device)
    for region in (MASKED, UNMASKED):
        weight, selection = regions[region], selections[region]
        if not weight:
            continue
        for teacher, student, head in pairs:
            target, given = selection.take(teacher).float(), head(selection.take(student)).float()
            for name, share in distances.items():
                if share:
                    total = total + weight * share * selection.sum_of_means(DISTANCES[name](given, target))
    return total / len(pairs)


def naive_frame_loss(teacher: Tensor, given: Tensor, hidden: Sequence[Sequence[bool]], **weights: float) -> float:
    """:func:`frame_loss` of one head, written out frame by frame: the reference that tests hold it to.

    Args:
        teacher, given: B x T x D, the latter what the head gives.
        hidden: for each utterance a boolean for each of its own frames.
        weights: ``mse``, ``l1``, ``cosine``, ``masked`` and ``unmasked``.
    """
    total = 0.0
    for row, flags in enumerate(hidden):
        for region, wanted in (("masked", True), ("unmasked", False)):
            frames = [frame for frame, flag in enumerate(flags) if bool(flag) == wanted]
            for frame in frames:
                x, z = teacher[row, frame].double(), given[row, frame].double()
                cosine = (x @ z) / (x.norm() * z.norm())
                distance = (
                    weights["mse"] * ((x - z) ** 2).sum() / len(x)
                    + weights["l1"] * (x - z).abs().sum() / len(x)
                    + weights["cosine"] * torch.log1p(torch.exp(-cosine))
                )
                total += weights[region] * float(distance) / len(frames)
    return total
