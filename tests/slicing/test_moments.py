"""Moments and the least-squares fits from them, LayerNorms included, against design matrices written out in full."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fairseq_star.slicing.moments import Moments, fit_norm, low_rank, roots, solve
from tests.support.slicing_cases import regressed


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gathered(inputs: torch.Tensor, targets: torch.Tensor, sizes: list[int]) -> Moments:
    """Of all rows, given in pieces."""
    moments = Moments(inputs.size(1), targets.size(1))
    for one, other in zip(inputs.split(sizes), targets.split(sizes), strict=True):
        moments.add(one, other)
    return moments


@settings(max_examples=40)
@given(
    rows=st.integers(2, 40), size=st.integers(1, 6), targets=st.integers(1, 4), ridge=st.sampled_from([0.01, 0.3, 5.0]),
    with_prior=st.booleans(), seed=st.integers(0, 1000),
)  # fmt: skip
def test_a_fit_is_ridge_regression(rows, size, targets, ridge, with_prior, seed):
    x = drawn(rows, size, seed=seed) + 3
    t = drawn(rows, targets, seed=seed + 1) - 2
    prior = drawn(targets, size, seed=seed + 2) if with_prior else torch.zeros(targets, size, dtype=torch.float64)
    first = rows // 2
    fitted = gathered(x, t, [first, rows - first]).fit(ridge, prior if with_prior else None)
    weight, bias = regressed(x.numpy(), t.numpy(), ridge, prior.numpy())
    assert np.allclose(fitted.weight, weight, atol=1e-8)
    assert np.allclose(fitted.bias, bias, atol=1e-7)


def test_without_ridge_it_is_least_squares():
    x, t = drawn(50, 5) * torch.tensor([1, 10, 0.1, 1, 1.0]), drawn(50, 3, seed=1)
    fitted = gathered(x, t, [20, 30]).fit(0)
    expected = np.linalg.lstsq(np.hstack([x, np.ones((50, 1))]), t.numpy(), rcond=None)[0]
    assert np.allclose(fitted.weight, expected[:-1].T)
    assert np.allclose(fitted.bias, expected[-1])


def test_of_directions_without_variance_the_prior_stays():
    """A constant input, and two that are the same: nothing divides by zero, the prediction is still the best."""
    x = drawn(60, 4)
    x[:, 1], x[:, 2] = 7, x[:, 0]
    t, prior = drawn(60, 2, seed=1), drawn(2, 4, seed=2)
    fitted = gathered(x, t, [60]).fit(0, prior)
    assert torch.allclose(fitted.weight[:, 1], prior[:, 1])
    assert torch.allclose(fitted.weight[:, 0] - fitted.weight[:, 2], prior[:, 0] - prior[:, 2])
    best = np.linalg.lstsq(np.hstack([x, np.ones((60, 1))]), t.numpy(), rcond=None)[0]
    given = x @ fitted.weight.T + fitted.bias
    assert np.allclose(given, np.hstack([x, np.ones((60, 1))]) @ best)
    constant = gathered(torch.ones(5, 2, dtype=torch.float64), drawn(5, 1), [5]).fit(0.1)
    assert constant.weight.abs().max() < 1e-12
    assert torch.allclose(constant.bias, drawn(5, 1).mean())


def test_sums_are_in_double_precision_unless_asked_otherwise():
    """A mean a thousand times the deviation: single precision would lose the covariance."""
    x = (drawn(20_000, 2) + 1000).float()
    exact, fast = Moments(2), Moments(2, dtype=torch.float32)
    for piece in x.split(500):
        exact.add(piece)
        fast.add(piece)
    expected = torch.from_numpy(np.cov(x.double().T.numpy(), bias=True))
    assert (exact.covariance - expected).abs().max() < 1e-6
    assert (fast.covariance - expected).abs().max() > 1e-4
    assert torch.allclose(exact.mean, x.double().mean(0))
    assert torch.allclose(exact.second, (x.double().T @ x.double()) / len(x))
    assert exact.count == 20_000


@pytest.mark.parametrize("ridge", [0.0, 0.2])
def test_solving_and_roots_are_of_the_same_matrix(ridge):
    x = drawn(30, 6)
    covariance = x.T @ x / 30
    regular = covariance + ridge * covariance.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    cross = drawn(3, 6, seed=1)
    assert torch.allclose(solve(covariance, cross, ridge), cross @ torch.linalg.inv(regular))
    root, inverse = roots(covariance, ridge)
    assert torch.allclose(root @ root, regular)
    assert torch.allclose(inverse @ root, torch.eye(6, dtype=torch.float64))
    assert torch.allclose(root, root.T)
    assert torch.allclose(inverse, inverse.T)


def test_roots_of_a_matrix_of_lower_rank_are_its_pseudo_inverses():
    x = drawn(3, 6)
    covariance = x.T @ x / 3
    root, inverse = roots(covariance, 0)
    assert torch.allclose(root @ root, covariance)
    assert torch.allclose(inverse @ inverse, torch.linalg.pinv(covariance, hermitian=True, rtol=1e-9), atol=1e-8)
    none = torch.zeros(3, 3, dtype=torch.float64)
    assert all(one.abs().max() == 0 for one in roots(none, 0.1))
    assert solve(none, drawn(2, 3), 0.1).abs().max() == 0


@settings(max_examples=30)
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    inner=st.integers(1, 8),
    rank=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
def test_a_low_rank_is_the_nearest_of_its_rank(height, width, inner, rank, seed):
    given = drawn(height, inner, seed=seed), drawn(width, inner, seed=seed + 5000)
    matrix = given[0] @ given[1].T
    left, right = low_rank(*given, rank)
    assert left.shape == (height, rank)
    assert right.shape == (width, rank)
    distance = (matrix - left @ right.T).norm()
    values = torch.linalg.svdvals(matrix)
    assert distance == pytest.approx(values[rank:].square().sum().sqrt().item(), abs=1e-9)  # Eckart and Young
    for other in range(10):
        # The best right factor for a random left one: no rival of that rank is nearer.
        rival = drawn(height, rank, seed=seed + other + 1)
        nearest = rival @ torch.linalg.lstsq(rival, matrix, driver="gelsd").solution
        assert distance <= (matrix - nearest).norm() + 1e-9
    used = min(rank, height, width, inner)
    # Both factors carry as much, so that neither begins to learn faster.
    assert torch.allclose(left.norm(dim=0)[:used], right.norm(dim=0)[:used])


def pairs_of(width: int = 5) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def rows(count: int) -> torch.Tensor:
        return torch.randn(count, width, generator=generator) * 3 + torch.arange(width)

    return [(rows(count), rows(count)) for count in (7, 1, 40)]


def test_each_channel_of_a_norm_has_its_line():
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
