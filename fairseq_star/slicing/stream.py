"""The residual stream: which of the teacher's channels the student's are, and how strong.

STaR compares X X^T with Y Y^T. With Y some channels of X, what is missing from Y Y^T is the left-out channels' part. As
these are largely predictable from the kept ones, most of it is made up for by giving each kept channel a scale, w its
square: min over w of sum ||X X^T - sum_c w_c x_c x_c^T||^2, a linear system in w.

Shapes: T frames, D channels of the teacher, d of the student.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairseq_star.slicing.moments import Moments
from fairseq_star.slicing.selection import strongest_by_group

SCALES = (0.25, 4.0)  # bounds of a channel's scale


@dataclass(frozen=True)
class Stream:
    """The student's channels as some of the teacher's, each times a scale."""

    channels: Tensor  # d, rising
    scale: Tensor  # d
    num_channels: int  # D

    def of(self, states: Tensor) -> Tensor:
        """Return what the teacher's ``states`` (... x D) are in the student: ... x d."""
        return states[..., self.channels] * self.scale

    def writing(self, weight: Tensor) -> Tensor:
        """Return what writes to the student's stream, of what writes to the teacher's (D or D x N)."""
        scale = self.scale.to(weight.dtype)
        return weight[self.channels] * (scale if weight.ndim == 1 else scale[:, None])

    def placing(self) -> Tensor:
        """Return D x d: each of the student's channels in its place in the teacher's stream, unscaled again."""
        matrix = torch.zeros(self.num_channels, len(self.channels), dtype=torch.float64)
        matrix[self.channels, torch.arange(len(self.channels))] = 1 / self.scale.double()
        return matrix

    def scaled(self, scale: Tensor) -> "Stream":
        """Return the same channels, each times ``scale`` (d) more."""
        return Stream(self.channels, self.scale * scale, self.num_channels)

    def unscaled(self) -> "Stream":
        """Return the same channels as they are in the teacher."""
        return Stream(self.channels, torch.ones_like(self.scale), self.num_channels)


def choose_stream(states: Iterable[Sequence[Tensor]], width: int, groups: int, *, scaled: bool) -> Stream:
    """Choose the channels of most energy, summed over layers with each layer's own energy as the unit, equally many of
    each group of the positional convolution, which then stays whole.

    Args:
        states: for each utterance its L+1 hidden states, T x D each; gone through twice, so a list or the like.
        width: d.
        groups: of the positional convolution; divides both widths.
        scaled: give each channel a scale.
    """
    moments: list[Moments] = []
    for utterance in states:
        moments = moments or [Moments(state.size(1)) for state in utterance]
        for one, state in zip(moments, utterance, strict=True):
            one.add(state)
    energy = sum(one.second.diagonal() / one.second.trace().clamp(min=1e-30) for one in moments)
    channels = strongest_by_group(energy, width, groups)
    scale = torch.ones(width)
    if scaled:
        scale = gram_scales([(state, state[:, channels]) for utterance in states for state in utterance])
    return Stream(channels, scale, len(energy))


def gram_scales(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the scale (d) of each of the student's channels with which its Gram matrices are nearest to the teacher's.

    With w the scales' squares: min over w of the sum over pairs of ``1/T^2 ||X X^T - sum_c w_c y_c y_c^T||_F^2``, whose
    normal equations are ``sum (Y^T Y)^2 w = sum (Y^T X)^2 1``, squares taken element by element; no T x T matrix is
    formed.

    Args:
        pairs: X of the teacher (T x D) and Y of the student (T x d).
    """
    left = right = None
    for x, y in pairs:
        own, cross = ((y.T @ other).double().square() / len(x) ** 2 for other in (y, x))
        left = own if left is None else left + own
        right = cross.sum(1) if right is None else right + cross.sum(1)
    mean = left.diagonal().mean()
    if not mean > 0:
        return torch.ones(len(left))
    # The ridge pulls to 1, where a student as wide as its teacher is already.
    ridge = 1e-6 * mean * torch.eye(len(left), dtype=torch.float64)
    squares = 1 + torch.linalg.solve(left + ridge, right - left.sum(1))
    low, high = SCALES
    return squares.clamp(low**2, high**2).sqrt().float()
