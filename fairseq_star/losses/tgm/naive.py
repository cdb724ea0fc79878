"""The TGM loss as its definition reads, in loops, and as the re-implementation stacks it; for tests and benchmarks.

``loop_tgm_loss`` is what every form's value and gradient are held to, ``stacked_tgm_loss`` what speed and memory are.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import mse_loss


def loop_tgm_loss(
    teacher_states: Sequence[Tensor],
    student_states: Sequence[Tensor],
    frame_lengths: Sequence[int],
    *,
    layerwise_weight: float = 1.0,
    intra_layer_weight: float = 1.0,
    first_layerwise_state: int = 1,
    distance: str = "mse",
) -> Tensor:
    """``tgm_loss``, by loops over utterances, states and, for kl, rows; differentiated by autograd.

    Args:
        teacher_states: M of B x T x D_t.
        student_states: M of B x T x D_s.
        frame_lengths: n_b, valid frames of each utterance.
        layerwise_weight, intra_layer_weight, first_layerwise_state, distance: as ``tgm_loss`` takes them.

    Returns:
        [B], the loss of each utterance in the states' own precision.
    """
    losses = []
    for utterance, frames in enumerate(frame_lengths):
        teacher = [state[utterance, :frames] for state in teacher_states]  # n x D_t
        student = [state[utterance, :frames] for state in student_states]  # n x D_s
        layerwise = [
            _distance(teacher[i] @ teacher[i].T, student[i] @ student[i].T, teacher[i], student[i], distance)
            for i in range(first_layerwise_state, len(teacher))
        ]
        intra_layer = [
            _distance(teacher[i - 1] @ teacher[i].T, student[i - 1] @ student[i].T, teacher[i], student[i], distance)
            for i in range(1, len(teacher))
        ]
        losses.append(
            layerwise_weight * sum(layerwise) / len(layerwise)
            + intra_layer_weight * sum(intra_layer) / len(intra_layer)
        )
    return torch.stack(losses)


def _distance(gram_teacher: Tensor, gram_student: Tensor, x: Tensor, y: Tensor, distance: str) -> Tensor:
    """Mean distance of two n x n matrices; x: n x D_t and y: n x D_s give the widths."""
    if distance == "mse":
        return ((gram_teacher - gram_student) ** 2).mean()
    if distance == "l1":
        return (gram_teacher - gram_student).abs().mean()
    rows = []
    for row_teacher, row_student in zip(gram_teacher, gram_student, strict=True):
        p = torch.softmax(row_teacher / x.shape[1] ** 0.5, dim=0)
        log_p = torch.log_softmax(row_teacher / x.shape[1] ** 0.5, dim=0)
        rows.append((p * (log_p - torch.log_softmax(row_student / y.shape[1] ** 0.5, dim=0))).sum())
    return torch.stack(rows).mean()


def stacked_tgm_loss(teacher_states: Sequence[Tensor], student_states: Sequence[Tensor]) -> Tensor:
    """The re-implementation's loss: mse over all Gram matrices of all layers at once, padded frames included.

    Args:
        teacher_states: M of B x T x D_t.
        student_states: M of B x T x D_s.

    Returns:
        A scalar: the mean over utterances, states and entries, layer-wise and intra-layer added.
    """
    x = torch.stack(teacher_states, dim=1)  # B x M x T x D_t
    y = torch.stack(student_states, dim=1)  # B x M x T x D_s
    layerwise = mse_loss(torch.einsum("bltd,blfd->bltf", x, x), torch.einsum("bltd,blfd->bltf", y, y))
    intra_layer = mse_loss(
        torch.einsum("bltd,blfd->bltf", x[:, :-1], x[:, 1:]), torch.einsum("bltd,blfd->bltf", y[:, :-1], y[:, 1:])
    )
    return layerwise + intra_layer
