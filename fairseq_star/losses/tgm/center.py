"""Exact centring of the D x D form: the mean frame makes up most of a Gram matrix and little of the difference.

Let X = 1 mu^T + X', Y = 1 nu^T + Y' with X'^T 1 = Y'^T 1 = 0 over an utterance's n valid frames (mu, nu: mean frames).
For a pair of states i, j (i = j: layer-wise), F = Y_i Y_j^T - X_i X_j^T falls into four orthogonal parts,

    F = alpha 1 1^T + w_i 1^T + 1 w_j^T + F'        alpha = nu_i nu_j - mu_i mu_j,  F' = Y_i' Y_j'^T - X_i' X_j'^T
                                                     w_i = Y_i' nu_j - X_i' mu_j,    w_j = Y_j' nu_i - X_j' mu_i

so  ||F||^2 = n^2 alpha^2 + n ||w_i||^2 + n ||w_j||^2 + ||F'||^2   and
    F Y_j   = F' Y_j' + n w_i nu_j^T + 1 (n alpha nu_j + Y_j'^T w_j)^T,

where alpha and w are small differences formed *before* they are squared. In float32 that leaves about as many digits
as the T x T form has, where the plain identity would lose twice as many (benchmarks/loss.md). It costs O(T D).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fairseq_star.losses.tgm.batch import Group


class Means(NamedTuple):
    """Mean frames of one state."""

    teacher: Tensor  # mu: N x 1 x D_t
    student: Tensor  # nu: N x 1 x D_s


def center(x: Tensor, y: Tensor, group: Group) -> tuple[Tensor, Tensor, Means]:
    """Return X' and Y' with zeros in padded rows, and the mean frames; x: N x T' x D_t, y: N x T' x D_s, padded rows
    zero."""
    means = Means(*(state.sum(dim=1, keepdim=True) / group.count for state in (x, y)))
    x, y = x - means.teacher, y - means.student
    if group.padding is not None:
        x.masked_fill_(group.padding, 0.0)
        y.masked_fill_(group.padding, 0.0)
    return x, y, means


def mean_terms(
    group: Group,
    left: tuple[Tensor, Tensor, Means],
    right: tuple[Tensor, Tensor, Means],
    coef: float,
    shares: tuple[list, list] | None,
    overlap: Tensor | None = None,
) -> Tensor:
    """Return n^2 alpha^2 + n ||w_i||^2 + n ||w_j||^2 of a pair of states, and its gradient as outer products.

    Args:
        group: the utterances, for their frame counts.
        left: X_i', Y_i' and the mean frames of state i.
        right: the same of state j; the same tensors for a layer-wise term.
        coef: weight of the squared distance.
        shares: lists of both states' outer products (N x T' x 1 columns, N x 1 x D_s rows), appended to; None: no
            gradient.
        overlap: O of the pair, D_t x D_t, where the teacher's states are coordinates in two bases (``bases.py``).

    Returns:
        [N] float64.
    """
    (x_i, y_i, means_i), (x_j, y_j, means_j) = left, right
    count = group.count  # n: a number, or N x 1 x 1
    mu_i, mu_j = means_i.teacher, means_j.teacher
    if overlap is not None:  # each mean frame in the other state's basis; float64 as alpha is
        wide = overlap.double()
        mu_i, mu_j = (mu_i.double() @ wide).to(mu_i.dtype), (mu_j.double() @ wide.mT).to(mu_j.dtype)
    # float64: a difference of two sums of D products that nearly cancel.
    alpha = _dot(means_i.student, means_j.student) - _dot(means_i.teacher, mu_j)  # N x 1 x 1
    w_i = torch.bmm(y_i, means_j.student.mT) - torch.bmm(x_i, mu_j.mT)  # N x T' x 1
    w_j = w_i if y_i is y_j else torch.bmm(y_j, means_i.student.mT) - torch.bmm(x_j, mu_i.mT)
    squares = w_i.double().square().sum(1, keepdim=True) + w_j.double().square().sum(1, keepdim=True)
    value = (alpha * count).square() + count * squares  # N x 1 x 1
    if shares is not None:
        flat = (alpha * count).to(y_i.dtype)
        ones = group.ones(y_i)  # N x T' x 1
        for own, own_w, other_y, other_mean, other_w in (
            (shares[0], w_i, y_j, means_j.student, w_j),
            (shares[1], w_j, y_i, means_i.student, w_i),
        ):
            own.append((own_w, 2 * coef * count * other_mean))
            own.append((ones, 2 * coef * (flat * other_mean + torch.bmm(other_w.mT, other_y))))
    return value[:, 0, 0]


def add_mean_gradient(out: Tensor, shares: list[tuple[Tensor, Tensor]]) -> None:
    """Add the sum of all outer products to ``out`` (N x T' x D_s), in one pass over it."""
    if shares:
        columns, rows = zip(*shares, strict=True)
        out.baddbmm_(torch.cat(columns, dim=2), torch.cat(rows, dim=1))


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Return the products of N x 1 x D rows: N x 1 x 1, float64."""
    return (left.double() * right.double()).sum(dim=2, keepdim=True)
