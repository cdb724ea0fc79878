"""Choice of the teacher's channels and feed-forward units that a student gets."""

import torch
from torch import Tensor

BATCHES = 48
"""Least number of steps of the greedy choice; candidates chosen in one step are not compared with each other."""


def strongest_by_group(energy: Tensor, count: int, groups: int = 1) -> Tensor:
    """Return the indices, rising, of the ``count / groups`` largest values in each of ``groups`` equal parts of
    ``energy`` (C)."""
    size = len(energy) // groups
    best = energy.view(groups, size).topk(count // groups, dim=1).indices.sort(1).values
    return (best + torch.arange(groups)[:, None] * size).flatten()


def most_explaining(own: Tensor, cross: Tensor, count: int, width: int = 1) -> Tensor:
    """Choose greedily the candidates that together predict the targets best: orthogonal least squares (Chen, Cowan and
    Luo, 1989), several candidates a step.

    Args:
        own: (C width) x (C width), covariance of the candidates' inputs; those of a candidate are adjacent.
        cross: (C width) x Q, their covariance with the targets.
        count: candidates to choose.
        width: inputs of a candidate, such as a channel's taps in the next convolution.

    Returns:
        ``count`` indices of candidates, rising.
    """
    num_candidates, eye = len(own) // width, torch.eye(len(own), dtype=own.dtype)
    # Above 0 for candidates of zeros too.
    own = own + 1e-5 * own.diagonal().mean().clamp(min=torch.finfo(own.dtype).tiny ** 0.5) * eye
    cross = cross.clone()
    available = torch.ones(num_candidates, dtype=torch.bool)
    at_once = max(1, count // BATCHES)
    while (missing := count - int((~available).sum())) > 0:
        # Both matrices are the residuals of candidates and targets after regression on the chosen candidates.
        floor = 1e-6 * own.diagonal().mean()
        if width == 1:
            gain = cross.square().sum(1) / (own.diagonal() + floor)
        else:
            left = cross.view(num_candidates, width, -1)
            blocks = own.view(num_candidates, width, num_candidates, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
            gain = (left * (torch.linalg.inv(blocks + floor * eye[:width, :width]) @ left)).sum((1, 2))
        chosen = torch.where(available, gain, -torch.inf).topk(min(at_once, missing)).indices
        available[chosen] = False
        inputs = (chosen[:, None] * width + torch.arange(width)).flatten()
        rows = own[inputs]
        explained = torch.linalg.solve(rows[:, inputs] + floor * eye[: len(inputs), : len(inputs)], rows)
        cross.addmm_(explained.T, cross[inputs], alpha=-1)
        own.addmm_(rows.T, explained, alpha=-1)
    return (~available).nonzero().flatten()
