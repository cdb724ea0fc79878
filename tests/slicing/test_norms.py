"""A LayerNorm's scale and shift: a straight line fitted to each channel."""

import numpy as np
import pytest
import torch
from torch import nn

from fairseq_star.slicing.norms import fit_norm


def pairs_of(width: int = 5) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def drawn(rows: int) -> torch.Tensor:
        return torch.randn(rows, width, generator=generator) * 3 + torch.arange(width)

    return [(drawn(rows), drawn(rows)) for rows in (7, 1, 40)]


def test_each_channel_has_its_line():
    pairs, norm = pairs_of(), nn.LayerNorm(5, eps=1e-3)
    with torch.no_grad():
        fit_norm(norm, iter(pairs))
    given = torch.cat([b for _, b in pairs]).double().numpy()
    target = torch.cat([a for a, _ in pairs]).double().numpy()
    normalized = (given - given.mean(1, keepdims=True)) / np.sqrt(given.var(1, keepdims=True) + 1e-3)
    for channel in range(5):
        scale, shift = np.polyfit(normalized[:, channel], target[:, channel], 1)
        assert norm.weight[channel].item() == pytest.approx(scale, rel=1e-4, abs=1e-5)
        assert norm.bias[channel].item() == pytest.approx(shift, rel=1e-4, abs=1e-5)


def test_what_another_norm_gave_is_given_back():
    pairs, theirs, norm = pairs_of(), nn.LayerNorm(5), nn.LayerNorm(5)
    with torch.no_grad():
        theirs.weight.copy_(torch.linspace(-2, 2, 5))
        theirs.bias.copy_(torch.arange(5.0))
        fit_norm(norm, [(theirs(b), b) for _, b in pairs])
    assert torch.allclose(norm.weight, theirs.weight, atol=1e-5)
    assert torch.allclose(norm.bias, theirs.bias, atol=1e-5)


def test_a_channel_that_never_changes_gets_its_targets_mean():
    given = torch.ones(30, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    target, norm = torch.randn(30, 4, generator=torch.Generator().manual_seed(1)), nn.LayerNorm(4)
    with torch.no_grad():
        fit_norm(norm, [(target, given)])
        assert torch.allclose(norm(given), target.mean(0).expand(30, 4), atol=1e-4)
