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

from fairseq_star.errors import StarError
from fairseq_star.losses.batch import Compared, Sizes
from fairseq_star.losses.options import FRAMES, StarTGMConfig, check_layers
from fairseq_star.losses.selection import MASKED, UNMASKED, Selection

Distance = Callable[[Tensor, Tensor], Tensor]  # N x D each -> N

DISTANCES: dict[str, Distance] = {
    "mse": lambda given, target: (given - target).square().mean(-1),
    "l1": lambda given, target: (given - target).abs().mean(-1),
    "cosine": lambda given, target: -F.logsigmoid(F.cosine_similarity(given, target, dim=-1)),
}


class FrameCopies:
    """The weighted frame losses of a batch.

    Args:
        cfg: weights and layers.
        sizes: of teacher and student.

    Raises:
        StarError: layers that there are not.
    """

    def __init__(self, cfg: StarTGMConfig, sizes: Sizes):
        matched = list(sizes.matched)
        layers = matched if cfg.frame_layers is None else cfg.frame_layers
        layers = check_layers("frame_layers", layers, sizes.teacher_layers, len(layers))
        students = cfg.frame_student_layers
        if students is None:
            if not set(layers) <= set(matched):
                raise StarError(
                    f"criterion.frame_layers={layers}: no layers of the student are matched to all of them; name those "
                    "that predict them in criterion.frame_student_layers"
                )
            students = [matched.index(layer) + 1 for layer in layers]
        self.teacher_states = layers
        self.student_states = check_layers("frame_student_layers", students, sizes.student_layers, len(layers))
        self.heads = nn.ModuleList(nn.Linear(sizes.student_dim, sizes.teacher_dim) for _ in layers)
        self.distances = {name.split("_")[1]: getattr(cfg, name) for name in FRAMES}
        self.regions = {MASKED: cfg.frame_masked_weight, UNMASKED: cfg.frame_unmasked_weight}

    @classmethod
    def of(cls, cfg: StarTGMConfig, sizes: Sizes) -> "FrameCopies | None":
        """As the options say; None where their weights are 0."""
        return cls(cfg, sizes) if any(getattr(cfg, name) for name in FRAMES) else None

    @property
    def names(self) -> list[str]:
        """What is logged."""
        return ["frames"]

    def __call__(self, batch: Compared) -> Tensor:
        """The sum over utterances, weighted."""
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
