"""The D x D form of the mse TGM loss: no T x T matrix anywhere, cost linear in T.

With A_l = X_l^T X_l (D_t x D_t), R_l = X_l^T Y_l (D_t x D_s), S_l = Y_l^T Y_l (D_s x D_s):

    ||X_l X_l^T - Y_l Y_l^T||^2              = ||A_l||^2 - 2 ||R_l||^2 + ||S_l||^2
    ||X_{l-1} X_l^T - Y_{l-1} Y_l^T||^2      = <A_{l-1}, A_l> - 2 <R_{l-1}, R_l> + <S_{l-1}, S_l>

(both are the trace identity <U V^T, P Q^T> = <U^T P, V^T Q>), and the whole gradient of a state is two thin products:

    dY_l = Y_l P_l - X_l Q_l,   P_l = 4 c S_l + 2 c' (S_{l-1} + S_{l+1}),   Q_l the same of R

with c, c' the layer-wise and intra-layer coefficients, neighbours left out at the ends of the chain and 4 c where a
state has no layer-wise term. A_l, R_l, S_l serve the layer-wise term and both neighbouring intra-layer ones; states
stream through a window of two, so memory does not grow with M either.

The identity subtracts sums as large as the Gram matrices' norms. It is applied to *centred* states, whose norms are
a small part of that (frames of a Transformer layer have most in common); ``center.py`` has the exact rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fairseq_star.losses.tgm.batch import Group
from fairseq_star.losses.tgm.center import Means, add_mean_gradient, center, mean_terms
from fairseq_star.losses.tgm.linalg import add_product, inner, product
from fairseq_star.losses.tgm.terms import Terms

# A_l is symmetric and only its norms are needed: its upper triangle in this many panels is 5/8 of the work. More
# panels save little more and are thinner, slower products.
NUM_PANELS = 4


@dataclass
class _State:
    """One state in the window, with its products for its own term, the next pair and its gradient."""

    x: Tensor  # N x T' x D_t, centred (both in half precision: as it is)
    y: Tensor  # N x T' x D_s
    means: Means | None  # that were subtracted; None where none were
    teacher: list[Tensor]  # panels of A_l: N x w x (D_t - start)
    cross: Tensor  # R_l: N x D_t x D_s
    student: Tensor  # S_l: N x D_s x D_s
    cross_weight: Tensor | None = None  # Q_l so far
    student_weight: Tensor | None = None  # P_l so far
    low_rank: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # gradient: sum of N x T' x 1 times N x 1 x D_s

    def add_weights(self, cross: Tensor, student: Tensor, coef: float) -> None:
        """Add coef R to Q_l and coef S to P_l, for a state of the same term; R in this state's basis."""
        if self.cross_weight is None:
            self.cross_weight, self.student_weight = coef * cross, coef * student
        else:
            self.cross_weight.add_(cross, alpha=coef)
            self.student_weight.add_(student, alpha=coef)

    def write_gradient(self, out: Tensor) -> None:
        """Add Y P - X Q + low-rank part to ``out`` (N x T' x D_s). P and Q are float32 also for half inputs."""
        if self.cross_weight is None:
            return
        add_product(out, self.y, self.student_weight)
        add_product(out, self.x, self.cross_weight, alpha=-1)
        add_mean_gradient(out, self.low_rank)


def gram_terms(group: Group, terms: Terms, gradients: Sequence[Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return sums over all pairs of frames of both mse terms, and add their weighted gradient.

    Args:
        group: the utterances.
        terms: states and weights.
        gradients: M of N x T' x D_s in ``group.dtype``, zeros, added to: d(weighted sum)/dY_l; None to skip the
            work.

    Returns:
        layerwise: [N] float64, sum over states of ||G_l^T - G_l^S||^2, unweighted.
        intra_layer: [N] float64, sum over pairs of the same of the cross-layer matrices, unweighted.
        magnitude: [N] float64, sum of the positive numbers that cancel in both.
    """
    layerwise, intra_layer, magnitude = torch.zeros(3, group.size, dtype=torch.float64, device=group.device)
    previous = None
    for index in range(terms.num_states):
        own, paired = index in terms.layerwise_states, index in terms.pairs
        if not (own or terms.pairs):
            continue
        current = _load(group, index)
        with_gradient = gradients is not None
        if own:
            value, positive = _distance(group, current, current, terms.layerwise_coef, with_gradient)
            layerwise += value
            magnitude += positive
        if paired:
            value, positive = _distance(group, previous, current, terms.intra_coef, with_gradient, group.overlap(index))
            intra_layer += value
            magnitude += positive
        if with_gradient and previous is not None:
            previous.write_gradient(gradients[index - 1])
        previous = current
    if gradients is not None and previous is not None:
        previous.write_gradient(gradients[terms.num_states - 1])
    return layerwise, intra_layer, magnitude


def _load(group: Group, index: int) -> _State:
    """Load state ``index``, centred, with its three products."""
    x, y = group.load(index)
    means = None
    if group.dtype in (x.dtype, y.dtype):
        x, y, means = center(x.to(group.dtype), y.to(group.dtype), group)
    # else both are half, which is too coarse for centred values: they stay as they are, for half-precision units
    teacher = _upper_panels(x, NUM_PANELS if group.bases is None else 1)  # rotated, A is needed whole
    return _State(x, y, means, teacher, product(x.mT, y), product(y.mT, y))


def _distance(
    group: Group, left: _State, right: _State, coef: float, with_gradient: bool, overlap: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return ||Y_left Y_right^T - X_left X_right^T||^2 (a state with itself: its layer-wise term), and add its
    gradient.

    Returns:
        [N] the squared distance; [N] the positive part of the D x D identity in it: their ratio says how many of the
        digits cancelled.
    """
    teacher, left_cross, right_cross = left.teacher, left.cross, right.cross
    if overlap is not None:  # each teacher product in the other state's basis
        teacher = [overlap.mT @ left.teacher[0] @ overlap]
        left_cross, right_cross = overlap.mT @ left.cross, overlap @ right.cross
    positive = _panel_inner(teacher, right.teacher) + inner(left.student, right.student)
    value = positive - 2 * inner(left_cross, right.cross)
    if with_gradient:
        # A state with itself has both shares, hence 4 c and 2 c'.
        left.add_weights(right_cross, right.student, 2 * coef)
        right.add_weights(left_cross, left.student, 2 * coef)
    if left.means is not None:
        shares = (left.low_rank, right.low_rank) if with_gradient else None
        sides = (left.x, left.y, left.means), (right.x, right.y, right.means)
        value = value + mean_terms(group, *sides, coef, shares, overlap)
    return value, positive


def _upper_panels(state: Tensor, num_panels: int) -> list[Tensor]:
    """Return row panels of A = X^T X from the diagonal on; X: N x T' x D_t."""
    dim = state.shape[-1]
    width = -(-dim // num_panels)
    return [product(state[..., start : start + width].mT, state[..., start:]) for start in range(0, dim, width)]


def _panel_inner(left: list[Tensor], right: list[Tensor]) -> Tensor:
    """Return <A, A'> of two symmetric matrices from their upper panels, [N]: off-diagonal blocks count twice."""
    total = torch.zeros((), dtype=torch.float64, device=left[0].device)
    for a, b in zip(left, right, strict=True):
        width = a.shape[-2]
        total = total + inner(a[..., :width], b[..., :width])
        if a.shape[-1] > width:
            total = total + 2 * inner(a[..., width:], b[..., width:])
    return total
