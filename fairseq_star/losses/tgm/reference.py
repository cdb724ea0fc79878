"""The plain form: all Gram matrices of all states stacked, differentiated by autograd. For comparison."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fairseq_star.losses.tgm.bases import Bases
from fairseq_star.losses.tgm.linalg import accumulation_dtype
from fairseq_star.losses.tgm.terms import Terms


def reference_terms(
    teacher_states: Sequence[Tensor],
    student_states: Sequence[Tensor],
    frame_lengths: Tensor | None,
    terms: Terms,
    distance: str,
    bases: Bases | None = None,
) -> tuple[Tensor, Tensor]:
    """The sums ``tiled_terms`` computes, differentiable: ([B] layer-wise, [B] intra-layer).

    Args:
        teacher_states: M of B x T x D_t.
        student_states: M of B x T x D_s.
        frame_lengths: [B] on the states' device, or None.
        terms: which states.
        distance: mse, l1 or kl.
        bases: where the teacher's states are coordinates.
    """
    dtype = accumulation_dtype(teacher_states[0].dtype, student_states[0].dtype)
    teacher = torch.stack([state.detach().to(dtype) for state in teacher_states], dim=1)  # B x M x T x D_t
    student = torch.stack([state.to(dtype) for state in student_states], dim=1)  # B x M x T x D_s
    frames = teacher.shape[2]
    lengths = torch.full((teacher.shape[0],), frames) if frame_lengths is None else frame_lengths
    valid = torch.arange(frames, device=teacher.device)[None, :] < lengths.to(teacher.device)[:, None]  # B x T
    padded = ~valid[:, None, :, None]
    teacher, student = teacher.masked_fill(padded, 0.0), student.masked_fill(padded, 0.0)
    left, teacher_width = teacher[:, :-1], teacher.shape[-1]  # of the cross-layer matrices
    if bases is not None:
        left = torch.einsum("bltd,lde->blte", left, torch.stack([overlap.to(dtype) for overlap in bases.overlaps]))
        teacher_width = bases.width

    def distances(teacher_rows: Tensor, first: slice, second: slice) -> Tensor:
        """Sum over states (or pairs) and valid frames, [B]."""
        gram_teacher = torch.einsum("bltd,blfd->bltf", teacher_rows, teacher[:, second])
        gram_student = torch.einsum("bltd,blfd->bltf", student[:, first], student[:, second])
        if distance == "mse":
            return (gram_teacher - gram_student).square().sum(dim=(1, 2, 3))
        if distance == "l1":
            return (gram_teacher - gram_student).abs().sum(dim=(1, 2, 3))
        lowest = torch.finfo(dtype).min
        log_p = (gram_teacher / teacher_width**0.5).masked_fill(padded.mT, lowest).log_softmax(dim=-1)
        log_q = (gram_student / student.shape[-1] ** 0.5).masked_fill(padded.mT, lowest).log_softmax(dim=-1)
        return (log_p.exp() * (log_p - log_q)).masked_fill(padded, 0.0).sum(dim=(1, 2, 3))

    zero = 0.0 * student.sum(dim=(1, 2, 3))  # in the graph: a loss without terms has the gradient 0
    own = slice(terms.first_layerwise_state, None)
    layerwise = distances(teacher[:, own], own, own) if terms.layerwise_states else zero
    intra_layer = distances(left, slice(None, -1), slice(1, None)) if terms.pairs else zero
    return layerwise, intra_layer
