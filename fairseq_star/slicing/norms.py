"""LayerNorms of the student: scale and shift, channel by channel."""

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn


def fit_norm(norm: nn.LayerNorm, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Regress what a LayerNorm shall give on its input, normalized: one scale and one shift a channel.

    A student's norm takes mean and variance over fewer channels than its teacher's, so neither can be copied.

    Args:
        norm: of width d; its scale and shift are set.
        pairs: for each utterance, what it shall give and what comes in: N x d each.
    """
    count = inputs = squares = products = targets = 0
    for target, given in pairs:
        x, t = F.layer_norm(given, given.shape[-1:], eps=norm.eps).double(), target.double()
        count, inputs, targets = count + len(x), inputs + x.sum(0), targets + t.sum(0)
        squares, products = squares + x.square().sum(0), products + (x * t).sum(0)
    mean, target_mean = inputs / count, targets / count
    variance = squares / count - mean.square()
    scale = (products / count - mean * target_mean) / variance.clamp(min=1e-12)
    norm.weight.copy_(scale)
    norm.bias.copy_(target_mean - scale * mean)
