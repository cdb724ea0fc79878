"""Frames: a teacher's states, predicted frame by frame through a linear head a layer.

With x_t the state of a teacher layer, y_t that of a student layer, W and b the layer's head and z_t = W y_t + b,

    mse     mean over d of (x_t[d] - z_t[d])^2                    (ARMHuBERT, arXiv 2305.11685)
    l1      mean over d of |x_t[d] - z_t[d]|                      (DistilHuBERT, arXiv 2110.01900, equation 1)
    cosine  -log sigmoid(cos(x_t, z_t))                           (the same)

each as a mean over the utterance's masked frames, times ``frame_masked_weight``, plus the one over its unmasked
frames, times ``frame_unmasked_weight``; then a mean over layers. Nothing is read of padding.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_star.errors import StarError
from fairseq_star.losses.batch import DistillationBatch
from fairseq_star.losses.options import StarTGMConfig, check_layers
from fairseq_star.losses.selection import MASKED, UNMASKED, Selection
from fairseq_star.losses.term import Pair, Term

Distance = Callable[[Tensor, Tensor], Tensor]  # N x D each -> N

DISTANCES: dict[str, Distance] = {
    "mse": lambda given, target: (given - target).square().mean(-1),
    "l1": lambda given, target: (given - target).abs().mean(-1),
    "cosine": lambda given, target: -F.logsigmoid(F.cosine_similarity(given, target, dim=-1)),
}


class FramePrediction(Term):
    """The frame losses, each layer through a head of its own."""

    weights = tuple(f"frame_{name}_weight" for name in DISTANCES)
    meanings = {  # noqa: RUF012
        "frames": "how near the teacher’s states lie, moment by moment, through linear heads"
    }
    heads_name = "heads"

    def __init__(self, cfg: StarTGMConfig, pair: Pair):
        self.regions = {MASKED: cfg.frame_masked_weight, UNMASKED: cfg.frame_unmasked_weight}
        if not any(self.regions.values()):
            raise StarError("criterion.frame_masked_weight and criterion.frame_unmasked_weight are both 0; raise one")
        matched = list(pair.teacher_layers)
        layers = matched if cfg.frame_layers is None else cfg.frame_layers
        layers = check_layers("frame_layers", layers, pair.teacher.num_layers, len(layers))
        students = cfg.frame_student_layers
        if students is None:
            if not set(layers) <= set(matched):
                raise StarError(
                    f"criterion.frame_layers={layers}: no layers of the student are matched to all of them; name those "
                    "that predict them in criterion.frame_student_layers"
                )
            students = [matched.index(layer) + 1 for layer in layers]
        self.names, self.teacher_states = list(self.meanings), layers
        self.student_states = check_layers("frame_student_layers", students, pair.student_layers, len(layers))
        self.heads = nn.ModuleList(nn.Linear(pair.student_dim, pair.teacher.embed_dim) for _ in layers)
        self.distances = {name: getattr(cfg, f"frame_{name}_weight") for name in DISTANCES}

    def __call__(self, batch: DistillationBatch) -> Tensor:
        pairs = [
            (batch.teacher.hidden_states[teacher], batch.student.hidden_states[student], head)
            for teacher, student, head in zip(self.teacher_states, self.student_states, self.heads, strict=True)
        ]
        loss = frame_loss(pairs, batch.regions, distances=self.distances, regions=self.regions)
        batch.log["frames"] = loss.detach()
        return loss


def frame_loss(
    pairs: Sequence[tuple[Tensor, Tensor, nn.Module]],
    selections: Mapping[str, Selection],
    *,
    distances: Mapping[str, float],
    regions: Mapping[str, float],
) -> Tensor:
    """Sum the frame losses of all utterances.

    Args:
        pairs: for each head the teacher's states, the student's (B x T x D each) and the head.
        selections: of the frames, by region: ``masked`` and ``unmasked``.
        distances: weight of each of :data:`DISTANCES`; one of weight 0 is not computed.
        regions: weight of each region; one of weight 0 is not computed.

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


def naive_frame_loss(teacher: Tensor, given: Tensor, mask: Sequence[Sequence[bool]], **weights: float) -> float:
    """Compute :func:`frame_loss` of one head frame by frame: the reference of tests.

    Args:
        teacher, given: B x T x D, the latter the head's output.
        mask: for each utterance a boolean for each of its own frames, True = masked.
        weights: ``mse``, ``l1``, ``cosine``, ``masked`` and ``unmasked``.
    """
    total = 0.0
    for row, flags in enumerate(mask):
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
