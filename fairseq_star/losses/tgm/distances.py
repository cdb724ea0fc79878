"""Distances between the Gram matrices of teacher and student: a function of rows, and an entry in :data:`DISTANCES`.

The function is differentiable and is all that the naive loss and the T x T form need: the latter computes the slope of
a block of rows by autograd, unless an entry has a faster way. Where the distance is a sum over entries of a function of
G^S - G^T, an :class:`Entrywise` needs one buffer for difference, value and slope, and half the blocks of a
symmetric matrix. The D x D form exists for ``mse`` alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fairseq_star.losses.tgm.linalg import inner


class Rows(NamedTuple):
    """Rows of a teacher's and of a student's Gram matrix: N x r x c each, 0 in padded rows and columns."""

    teacher: Tensor
    student: Tensor
    teacher_width: int  # D_t
    student_width: int  # D_s
    padding: Tensor | None = None  # N x 1 x c bool, True = padded column; None: none is


@dataclass(frozen=True)
class Entrywise:
    """Value and slope of a distance that is a sum over entries e of the difference G^S - G^T, N x r x c.

    Attributes:
        total: the sum, [N] float64.
        slope: its derivative over :attr:`factor`; may overwrite the difference.
    """

    total: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    factor: float


@dataclass(frozen=True)
class Distance:
    """A distance between a student's and its teacher's Gram matrix.

    Attributes:
        of_rows: the distance of each row, N x r; those of padded rows are not read.
        over_entries: whether the loss is the mean over an utterance's n^2 entries, rather than over its n rows.
        with_slope: the distance of each row; its slope by entries of G^S over a factor; the factor.
        entrywise: a faster form, where there is one.
    """

    of_rows: Callable[[Rows], Tensor]
    over_entries: bool = True
    with_slope: Callable[[Rows], tuple[Tensor, Tensor, float]] | None = None
    entrywise: Entrywise | None = None


def mse(rows: Rows) -> Tensor:
    """Return squared differences of entries (STaR, arXiv 2312.09040)."""
    return (rows.student - rows.teacher).square().sum(-1)


def l1(rows: Rows) -> Tensor:
    """Return absolute differences of entries."""
    return (rows.student - rows.teacher).abs().sum(-1)


def kl(rows: Rows) -> Tensor:
    """Return KL(teacher || student) of each row over the root of its model's width, as a softmax over valid frames."""
    log_p, log_q = _log_softmaxes(rows)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def kl_with_slope(rows: Rows) -> tuple[Tensor, Tensor, float]:
    """Return the same, and its slope softmax(student) - softmax(teacher) over the root of the student's width."""
    log_p, log_q = _log_softmaxes(rows)
    p = log_p.exp()
    return (p * (log_p - log_q)).sum(-1), log_q.exp_().sub_(p), rows.student_width**-0.5


def _log_softmaxes(rows: Rows) -> tuple[Tensor, Tensor]:
    teacher, student = rows.teacher * rows.teacher_width**-0.5, rows.student * rows.student_width**-0.5
    if rows.padding is not None:
        # The lowest finite number: its probability is exactly 0 and, unlike -inf, 0 times its logarithm is 0.
        lowest = torch.finfo(student.dtype).min
        teacher, student = (matrix.masked_fill_(rows.padding, lowest) for matrix in (teacher, student))
    return teacher.log_softmax(-1), student.log_softmax(-1)


def _sum_of_squares(difference: Tensor) -> Tensor:
    return inner(difference, difference)


def _sum_of_magnitudes(difference: Tensor) -> Tensor:
    return torch.linalg.vector_norm(difference, ord=1, dim=-1).sum(dim=-1, dtype=torch.float64)


MSE = "mse"
DISTANCES = {
    MSE: Distance(mse, entrywise=Entrywise(_sum_of_squares, lambda difference: difference, 2.0)),
    "l1": Distance(l1, entrywise=Entrywise(_sum_of_magnitudes, Tensor.sign_, 1.0)),
    "kl": Distance(kl, over_entries=False, with_slope=kl_with_slope),
}
