"""The TGM loss by its definition, in loops, and as the re-implementation stacks it; for tests and benchmarks.

Every form's value and gradient are compared with ``loop_tgm_loss``, speed and memory with ``stacked_tgm_loss``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from fairseq_star.losses.tgm.distances import DISTANCES, Rows


def loop_tgm_loss(
    teacher_states: Sequence[Tensor],
    student_states: Sequence[Tensor],
    frame_lengths: Sequence[int] | None,
    *,
    layerwise_weight: float = 1.0,
    intra_layer_weight: float = 1.0,
    first_layerwise_state: int = 1,
    distance: str = "mse",
) -> Tensor:
    """Compute ``tgm_loss`` by loops over utterances and states, differentiated by autograd as often as wanted.

    Args:
        teacher_states: M of B x T x D_t.
        student_states: M of B x T x D_s.
        frame_lengths: n_b, valid frames of each utterance; None: all T.
        layerwise_weight, intra_layer_weight, first_layerwise_state, distance: see ``tgm_loss``.

    Returns:
        [B], the loss of each utterance in the states' own precision.
    """
    chosen, losses = DISTANCES[distance], []
    for utterance, frames in enumerate(frame_lengths or [student_states[0].shape[1]] * len(student_states[0])):
        teacher = [state[utterance, :frames] for state in teacher_states]  # n x D_t
        student = [state[utterance, :frames] for state in student_states]  # n x D_s

        def mean_distance(left: int, right: int, x=teacher, y=student) -> Tensor:
            rows = Rows(x[left] @ x[right].T, y[left] @ y[right].T, x[0].shape[1], y[0].shape[1])
            total = chosen.of_rows(rows).sum()
            return total / len(rows.student) ** (2 if chosen.over_entries else 1)

        layerwise = [mean_distance(i, i) for i in range(first_layerwise_state, len(teacher))]
        intra_layer = [mean_distance(i - 1, i) for i in range(1, len(teacher))]
        losses.append(
            layerwise_weight * sum(layerwise) / len(layerwise)
            + intra_layer_weight * sum(intra_layer) / len(intra_layer)
        )
    return torch.stack(losses)


def stacked_tgm_loss(teacher_states: Sequence[Tensor], student_states: Sequence[Tensor]) -> Tensor:
    """Compute the re-implementation's loss: mse over all Gram matrices of all layers at once, padded frames included.

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
