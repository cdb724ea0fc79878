"""Which channels and hidden units of a teacher a student keeps."""

import torch
from torch import Tensor

BATCHES = 48
"""Steps of the greedy choice at least: candidates that one step takes are not weighed against each other."""


def strongest_by_group(energy: Tensor, count: int, groups: int = 1) -> Tensor:
    """Return, rising, the ``count / groups`` numbers of most energy in each of ``groups`` equal groups of ``energy``
    (C)."""
    size = len(energy) // groups
    best = energy.view(groups, size).topk(count // groups, dim=1).indices.sort(1).values
    return (best + torch.arange(groups)[:, None] * size).flatten()


def most_explaining(own: Tensor, cross: Tensor, count: int, width: int = 1) -> Tensor:
    """Choose candidates from which targets are predicted best together, greedily: orthogonal least squares (Chen, Cowan
    and Luo, 1989), several candidates a step.

    Args:
        own: (C width) x (C width), covariance of the candidates' inputs; those of a candidate lie together.
        cross: (C width) x Q, their covariance with the targets.
        count: candidates to choose.
        width: inputs of a candidate, such as a channel's taps under the next convolution.

    Returns:
        ``count`` numbers of candidates, rising.
    """
    num_candidates = len(own) // width
    least = 1e-5 * own.diagonal().mean().clamp(
        min=torch.finfo(own.dtype).tiny ** 0.5
    )  # above 0 for candidates of zeros
    own = own + least * torch.eye(len(own), dtype=own.dtype)
    cross = cross.clone()
    available = torch.ones(num_candidates, dtype=torch.bool)
    at_once = max(1, count // BATCHES)
    while (missing := count - int((~available).sum())) > 0:
        # What is left of each candidate and of the targets once the chosen ones have explained what they can.
        floor = 1e-6 * own.diagonal().mean() * torch.eye(width, dtype=own.dtype)
        if width == 1:
            gain = cross.square().sum(1) / (own.diagonal() + floor[0, 0])
        else:
            left = cross.view(num_candidates, width, -1)
            blocks = own.view(num_candidates, width, num_candidates, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
            gain = (left * (torch.linalg.inv(blocks + floor) @ left)).sum((1, 2))
        chosen = torch.where(available, gain, -torch.inf).topk(min(at_once, missing)).indices
        available[chosen] = False
        inputs = (chosen[:, None] * width + torch.arange(width)).flatten()
        rows = own[inputs]
        among = rows[:, inputs] + floor.diagonal()[0] * torch.eye(len(inputs), dtype=own.dtype)
        explained = torch.linalg.solve(among, rows)  # chosen inputs x all
        cross.addmm_(explained.T, cross[inputs], alpha=-1)
        own.addmm_(rows.T, explained, alpha=-1)
    return (~available).nonzero().flatten()
