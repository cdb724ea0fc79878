"""References of the TGM loss: loops straight from the definition, and the stacked form speed is held against."""

import torch
from torch import Tensor
from torch.nn.functional import mse_loss


def loop_tgm_loss(
    teacher_states: list[Tensor],
    student_states: list[Tensor],
    frame_lengths: list[int],
    *,
    layerwise_weight: float = 1.0,
    intra_layer_weight: float = 1.0,
    first_layerwise_state: int = 1,
    distance: str = "mse",
) -> Tensor:
    """Loss of each utterance, [B], by loops over utterances, states and, for kl, rows; states: B x T x D."""
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


def stacked_tgm_loss(teacher_states: list[Tensor], student_states: list[Tensor]) -> Tensor:
    """The re-implementation's loss, a scalar: all Gram matrices of all layers at once, padded frames included."""
    x = torch.stack(teacher_states, dim=1)  # B x M x T x D_t
    y = torch.stack(student_states, dim=1)  # B x M x T x D_s
    layerwise = mse_loss(torch.einsum("bltd,blfd->bltf", x, x), torch.einsum("bltd,blfd->bltf", y, y))
    intra_layer = mse_loss(
        torch.einsum("bltd,blfd->bltf", x[:, :-1], x[:, 1:]), torch.einsum("bltd,blfd->bltf", y[:, :-1], y[:, 1:])
    )
    return layerwise + intra_layer
