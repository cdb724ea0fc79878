"""Residual stream: which channels of the teacher the student has, and their scales.

STaR compares X X^T with Y Y^T. With Y some channels of X, the left-out channels' part of X X^T is missing. As those are
largely predictable from the chosen ones, a scale for each chosen channel compensates for most of it. With w the squares
of the scales: min over w of sum ||X X^T - sum_c w_c x_c x_c^T||^2, a linear system in w.

Shapes: T frames, D channels of the teacher, d of the student.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fairseq_star.slicing.moments import Moments
from fairseq_star.slicing.selection import strongest_by_group

SCALES = (0.25, 4.0)  # bounds of a channel's scale


@dataclass(frozen=True)
class Stream:
    """Channels of the teacher's residual stream that the student has, each times a scale."""

    channels: Tensor  # d, rising
    scale: Tensor  # d
    num_channels: int  # D

    def to_student(self, states: Tensor) -> Tensor:
        """Map the teacher's states (... x D) to the student's channels (... x d)."""
        return states[..., self.channels] * self.scale

    def rows_of(self, weight: Tensor) -> Tensor:
        """Map a weight (D x N) or bias (D) that outputs the teacher's stream to one that outputs the student's."""
        scale = self.scale.to(weight.dtype)
        return weight[self.channels] * (scale if weight.ndim == 1 else scale[:, None])

    def to_teacher(self) -> Tensor:
        """Return the D x d matrix that maps the student's channels, unscaled, to their places in the teacher's stream;
        the other channels are zero."""
        matrix = torch.zeros(self.num_channels, len(self.channels), dtype=torch.float64)
        matrix[self.channels, torch.arange(len(self.channels))] = 1 / self.scale.double()
        return matrix

    def scaled(self, scale: Tensor) -> "Stream":
        """Return the same channels with their scales multiplied by ``scale`` (d)."""
        return replace(self, scale=self.scale * scale)

    def unscaled(self) -> "Stream":
        """Return the same channels with scale 1."""
        return replace(self, scale=torch.ones_like(self.scale))


def choose_stream(states: Sequence[Sequence[Tensor]], width: int, groups: int, *, scaled: bool) -> Stream:
    """Choose the channels of most energy, each layer's energies being relative to the layer's sum.

    Equally many come from each group of the positional convolution, whose groups thus stay intact.

    Args:
        states: the L+1 hidden states of each utterance, T x D each.
        width: d.
        groups: of the positional convolution; divides both widths.
        scaled: give each channel a scale.
    """
    moments = [Moments(state.size(1)) for state in states[0]]
    for utterance in states:
        for one, state in zip(moments, utterance, strict=True):
            one.add(state)
    energy = sum(one.second.diagonal() / one.second.trace().clamp(min=1e-30) for one in moments)
    channels = strongest_by_group(energy, width, groups)
    scale = torch.ones(width)
    if scaled:
        scale = gram_scales([(state, state[:, channels]) for utterance in states for state in utterance])
    return Stream(channels, scale, len(energy))


def gram_scales(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the scale (d) of each of the student's channels that brings its Gram matrices nearest to the teacher's.

    With w the squares of the scales: min over w of the sum over pairs of ``1/T^2 ||X X^T - sum_c w_c y_c y_c^T||_F^2``.
    Its normal equations are ``sum (Y^T Y)^2 w = sum (Y^T X)^2 1`` with elementwise squares; no T x T matrix is formed.

    Args:
        pairs: X of the teacher (T x D) and Y of the student (T x d).
    """
    left = right = 0
    for x, y in pairs:
        own, cross = ((y.T @ other).double().square() / len(x) ** 2 for other in (y, x))
        left, right = left + own, right + cross.sum(1)
    mean = left.diagonal().mean()
    if not mean > 0:
        return torch.ones(len(left))
    # The ridge pulls to 1, the solution for a student as wide as its teacher.
    ridge = 1e-6 * mean * torch.eye(len(left), dtype=torch.float64)
    squares = 1 + torch.linalg.solve(left + ridge, right - left.sum(1))
    low, high = SCALES
    return squares.clamp(low**2, high**2).sqrt().float()
