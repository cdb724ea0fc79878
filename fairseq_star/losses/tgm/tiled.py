"""The T x T form, one block of rows of one matrix at a time: for short utterances, and for all distances but mse.

With G = U V^T the student's matrix (U = V = Y_l layer-wise, U = Y_{l-1} and V = Y_l intra-layer), r a block of rows,
d the distance and H = d d / d G its slope in these rows:

    dU[r] += coef H V          dV += coef H^T U[r]

so the gradient is formed where the block is, and one block is all that is ever stored: memory linear in T. A
layer-wise matrix is symmetric: where the distance is a sum over entries, as for mse and l1, its blocks start at the
diagonal and count the rest twice. kl normalizes over whole rows, so it has no such form.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fairseq_star.losses.tgm.batch import Group
from fairseq_star.losses.tgm.distances import DISTANCES, MSE, Distance, Rows
from fairseq_star.losses.tgm.linalg import product
from fairseq_star.losses.tgm.terms import Terms

BLOCK_ROWS = 128
# On an accelerator a block is of the whole batch, and as high as this many float32 entries allow.
DEVICE_BLOCK_ENTRIES = 2**25


def tiled_terms(
    group: Group, terms: Terms, gradients: Sequence[Tensor] | None, distance: str = MSE
) -> tuple[Tensor, Tensor]:
    """Return sums over all pairs of frames (kl: over query frames) of both terms, and add their weighted gradient.

    Args:
        group: the utterances.
        terms: states and weights.
        gradients: M of N x T' x D_s in ``group.dtype``, zeros, added to; None to skip the work.
        distance: a name of :data:`fairseq_star.losses.tgm.distances.DISTANCES`.

    Returns:
        layerwise: [N] float64, sum over states, unweighted.
        intra_layer: [N] float64, sum over pairs, unweighted.
    """
    chosen = DISTANCES[distance]
    layerwise = torch.zeros(group.size, dtype=torch.float64, device=group.device)
    intra_layer = torch.zeros_like(layerwise)
    previous = previous_gradient = None
    for index in range(terms.num_states):
        own, paired = index in terms.layerwise_states, index in terms.pairs
        if not (own or terms.pairs):
            continue
        state = group.load(index)
        gradient = None if gradients is None else gradients[index]
        if own:
            layerwise += _matrix(group, state, state, gradient, gradient, terms.layerwise_coef, chosen)
        if paired:
            rows, overlap = previous, group.overlap(index)
            if overlap is not None:  # in the basis of its columns
                rows = torch.matmul(previous[0].to(overlap.dtype), overlap), previous[1]
            intra_layer += _matrix(group, rows, state, previous_gradient, gradient, terms.intra_coef, chosen)
        previous, previous_gradient = state, gradient
    return layerwise, intra_layer


def _matrix(
    group: Group,
    rows: tuple[Tensor, Tensor],  # X: N x T' x D_t and Y: N x T' x D_s the rows of the matrix come from
    columns: tuple[Tensor, Tensor],  # the same of its columns; the same object for a layer-wise matrix
    row_gradient: Tensor | None,  # N x T' x D_s
    column_gradient: Tensor | None,
    coef: float,
    distance: Distance,
) -> Tensor:
    """Return the distance of one pair of T' x T' matrices, [N]; add coef times its gradient to the two gradients."""
    entrywise = distance.entrywise
    mirrored = rows is columns and entrywise is not None
    total = torch.zeros(group.size, dtype=torch.float64, device=group.device)
    height = BLOCK_ROWS
    if group.device.type != "cpu":
        height = max(height, DEVICE_BLOCK_ENTRIES // (group.size * group.num_frames))
    for start in range(0, group.num_frames, height):
        stop = min(start + height, group.num_frames)
        left = start if mirrored else 0  # first column of the block
        x_rows, y_rows = (state[:, start:stop] for state in rows)
        x_columns, y_columns = (state[:, left:] for state in columns)
        if entrywise is None:
            teacher, student = product(x_rows, x_columns.mT), product(y_rows, y_columns.mT)
            part, slope, factor = _of_rows(group, slice(start, stop), teacher, student, distance)
        else:
            entries = _difference(x_rows, x_columns, y_rows, y_columns)
            part = entrywise.total(entries[..., : stop - left])
            if stop - left < entries.shape[-1]:
                part += (2 if mirrored else 1) * entrywise.total(entries[..., stop - left :])
            slope, factor = entrywise.slope(entries), entrywise.factor
        total += part
        if row_gradient is None:
            continue
        factor *= 2 * coef if mirrored else coef
        # In float32 also of half states: to split a slope in two halves (``split_product``) reads and writes as many
        # bytes as its two products by half-precision units would save time.
        row_gradient[:, start:stop].baddbmm_(slope, y_columns.to(slope.dtype), alpha=factor)
        if not mirrored:
            column_gradient.baddbmm_(slope.mT, y_rows.to(slope.dtype), alpha=factor)
        elif stop < group.num_frames:
            off_diagonal = slope[..., stop - start :]
            column_gradient[:, stop:].baddbmm_(off_diagonal.mT, y_rows.to(slope.dtype), alpha=factor)
    return total


def _difference(x_rows: Tensor, x_columns: Tensor, y_rows: Tensor, y_columns: Tensor) -> Tensor:
    """Return G^S - G^T of a block, N x r x c, in one buffer."""
    out = product(y_rows, y_columns.mT)
    if x_rows.dtype == x_columns.dtype == out.dtype:
        return out.baddbmm_(x_rows, x_columns.mT, alpha=-1)
    return out.sub_(product(x_rows, x_columns.mT))


def _of_rows(
    group: Group, rows: slice, teacher: Tensor, student: Tensor, distance: Distance
) -> tuple[Tensor, Tensor, float]:
    """Compute the distance of ``rows`` of two matrices, N x r x T' each.

    Returns:
        [N] float64 sum over valid rows; N x r x T' slope over a factor, 0 in padded rows; the factor.
    """
    padding = group.padding
    widths = group.teacher_width, group.student_states[0].shape[-1]
    block = Rows(teacher, student, *widths, None if padding is None else padding.mT)
    if distance.with_slope is not None:
        per_row, slope, factor = distance.with_slope(block)
    else:
        with torch.enable_grad():
            per_row = distance.of_rows(block._replace(student=student.requires_grad_()))
        [slope], factor = torch.autograd.grad(per_row, [student], torch.ones_like(per_row)), 1.0
        per_row = per_row.detach()
    if padding is not None:
        per_row = per_row.masked_fill(padding[:, rows, 0], 0.0)
        slope.masked_fill_(padding[:, rows], 0.0)
    return per_row.sum(dim=-1, dtype=torch.float64), slope, factor
