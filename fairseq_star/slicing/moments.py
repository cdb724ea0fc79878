"""Second moments of activations, accumulated over batches, and the least-squares fits computed from them.

Sums and solves are in float64 whatever the activations' precision. Shapes: N frames, P inputs, Q targets.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Fit(NamedTuple):
    """An affine map ``targets = weight @ inputs + bias`` in float64."""

    weight: Tensor  # Q x P
    bias: Tensor  # Q

    def copy_to(self, module: nn.Linear | nn.Conv1d) -> None:
        """Set a module's weight and, where it has one, its bias; a convolution's inputs are channels times taps."""
        module.weight.copy_(self.weight.view_as(module.weight))
        if module.bias is not None:
            module.bias.copy_(self.bias)


class Moments:
    """Moments of P inputs and Q targets.

    Args:
        dtype: precision of the products of about P + Q rows at a time; their sums are in float64.
    """

    def __init__(self, num_inputs: int, num_targets: int = 0, dtype: torch.dtype = torch.float64):
        size = num_inputs + num_targets
        self.num_inputs, self.count, self.dtype = num_inputs, 0, dtype
        self._sums = torch.zeros(size, dtype=torch.float64)
        self._summed = torch.zeros(size, size, dtype=torch.float64)
        self._rows: list[Tensor] = []  # not multiplied yet: one product of many rows is far faster than many of few

    @classmethod
    def of(cls, inputs: Sequence[Tensor], targets: Sequence[Tensor], dtype: torch.dtype = torch.float64) -> "Moments":
        """Return the moments over utterances: ``inputs`` N x P each, ``targets`` N x Q each."""
        moments = cls(inputs[0].size(1), targets[0].size(1), dtype)
        for x, t in zip(inputs, targets, strict=True):
            moments.add(x, t)
        return moments

    def add(self, inputs: Tensor, targets: Tensor | None = None) -> None:
        """Add the rows of ``inputs`` (N x P) and ``targets`` (N x Q)."""
        rows = inputs.to(self.dtype)
        if targets is not None:
            rows = torch.cat([rows, targets.to(self.dtype)], dim=1)
        self.count += len(rows)
        self._sums += rows.sum(0, dtype=torch.float64)
        self._rows.append(rows)
        if sum(map(len, self._rows)) >= len(self._sums):
            self._multiply()

    def _multiply(self) -> None:
        rows, self._rows = torch.cat(self._rows), []
        self._summed += rows.T @ rows

    @property
    def mean(self) -> Tensor:
        """Mean of inputs and targets, P + Q."""
        return self._sums / self.count

    @property
    def second(self) -> Tensor:
        """Uncentred second moments, (P + Q) x (P + Q)."""
        if self._rows:
            self._multiply()
        return self._summed / self.count

    @property
    def covariance(self) -> Tensor:
        """Covariance, (P + Q) x (P + Q)."""
        return self.second - torch.outer(self.mean, self.mean)

    def fit(self, ridge: float, prior: Tensor | None = None) -> Fit:
        """Regress the targets on the inputs; the bias is not penalized.

        Minimizes ``E |t - W x - b|^2 + ridge m |W - prior|^2`` with m the inputs' mean variance and ``prior`` (Q x P)
        the map that the ridge pulls to, zeros when None (ridge regression, Hoerl and Kennard, 1970).
        """
        size, covariance, mean = self.num_inputs, self.covariance, self.mean
        own, cross = covariance[:size, :size], covariance[size:, :size]
        start = torch.zeros_like(cross) if prior is None else prior.double()
        weight = start + solve(own, cross - start @ own, ridge)
        return Fit(weight, mean[size:] - weight @ mean[:size])


def solve(covariance: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """Return ``cross (covariance + ridge m I)^-1`` with m the mean of the diagonal; directions without variance give 0.

    Shapes: ``covariance`` P x P, symmetric; ``cross`` Q x P.
    """
    if ridge and (mean := covariance.diagonal().mean()) > 0:
        regular = covariance + ridge * mean * torch.eye(len(covariance), dtype=covariance.dtype)
        factor, failed = torch.linalg.cholesky_ex((regular + regular.T) / 2)
        if not failed:  # far faster than the eigenvalues
            return torch.cholesky_solve(cross.T, factor).T
    values, vectors = _spectrum(covariance, ridge)
    return (cross @ vectors * _inverse(values)) @ vectors.T


def roots(covariance: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Return ``(covariance + ridge m I)^(1/2)`` and its inverse, both symmetric; without variance both are 0."""
    values, vectors = _spectrum(covariance, ridge)
    inverse = _inverse(values).sqrt()
    return (vectors * torch.where(inverse > 0, values, 0).sqrt()) @ vectors.T, (vectors * inverse) @ vectors.T


def low_rank(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return L (M x rank) and R (N x rank) with ``L R^T`` the matrix of that rank nearest to ``left right^T``; each
    factor has the square roots of the singular values (Eckart and Young, 1936).

    The product is never formed: a head's factors (M x K and N x K) are far thinner.
    """
    (left_basis, left_core), (right_basis, right_core) = torch.linalg.qr(left), torch.linalg.qr(right)
    u, values, v = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    root = values[:rank].sqrt()
    missing = (0, max(0, rank - len(values)))
    return F.pad(left_basis @ u[:, :rank] * root, missing), F.pad(right_basis @ v[:rank].T * root, missing)


def fit_norm(norm: nn.LayerNorm, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Set a LayerNorm's scale and shift by least squares, channel by channel.

    A student's norm takes mean and variance over fewer channels than its teacher's, so neither scale nor shift can be
    copied.

    Args:
        norm: of width d.
        pairs: target output and input for each utterance, N x d each.
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


def _spectrum(covariance: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    values = values.clamp(min=0)
    return values + ridge * values.mean(), vectors


def _inverse(values: Tensor) -> Tensor:
    return torch.where(values > 1e-12 * values.max(), 1 / values.clamp(min=torch.finfo(values.dtype).tiny), 0)
