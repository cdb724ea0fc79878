"""Second moments of activations, gathered piece by piece, and the least squares that follow from them.

Sums and solves are in float64 whatever the activations' precision, unless a faster one is named. Shapes: N frames, P
inputs, Q targets.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Fit(NamedTuple):
    """An affine map ``targets = weight @ inputs + bias`` in float64."""

    weight: Tensor  # Q x P
    bias: Tensor  # Q


class Moments:
    """Moments of inputs (N x P) and targets (N x Q).

    Args:
        num_inputs: P.
        num_targets: Q.
        dtype: precision of the products of about P + Q rows at a time; sums of these are in float64.
    """

    def __init__(self, num_inputs: int, num_targets: int = 0, dtype: torch.dtype = torch.float64):
        size = num_inputs + num_targets
        self.num_inputs, self.count, self.dtype = num_inputs, 0, dtype
        self._sums = torch.zeros(size, dtype=torch.float64)
        self._summed = torch.zeros(size, size, dtype=torch.float64)
        self._waiting: list[Tensor] = []  # rows not multiplied yet: one product of many is far quicker than many of few

    def add(self, inputs: Tensor, targets: Tensor | None = None) -> None:
        """Add the rows of ``inputs`` (N x P) and, next to them, of ``targets`` (N x Q)."""
        rows = inputs.to(self.dtype)
        if targets is not None:
            rows = torch.cat([rows, targets.to(self.dtype)], dim=1)
        self.count += len(rows)
        self._sums += rows.sum(0, dtype=torch.float64)
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= len(self._sums):
            self._multiply()

    def _multiply(self) -> None:
        rows = torch.cat(self._waiting)
        self._waiting = []
        self._summed += rows.T @ rows

    @property
    def mean(self) -> Tensor:
        """Means of inputs and targets: P + Q."""
        return self._sums / self.count

    @property
    def second(self) -> Tensor:
        """Second moments, not centred: (P + Q) x (P + Q)."""
        if self._waiting:
            self._multiply()
        return self._summed / self.count

    @property
    def covariance(self) -> Tensor:
        """Covariance: (P + Q) x (P + Q)."""
        return self.second - torch.outer(self.mean, self.mean)

    def fit(self, ridge: float, prior: Tensor | None = None) -> Fit:
        """Regress the targets on the inputs; the bias is free.

        Minimizes ``E |t - W x - b|^2 + ridge m |W - prior|^2`` with m the inputs' mean variance (ridge regression,
        Hoerl and Kennard, 1970).

        Args:
            ridge: share of an input's mean variance.
            prior: Q x P, the map that the ridge pulls to; zeros when None.
        """
        size, covariance, mean = self.num_inputs, self.covariance, self.mean
        own, cross = covariance[:size, :size], covariance[size:, :size]
        start = torch.zeros_like(cross) if prior is None else prior.double()
        weight = start + solve(own, cross - start @ own, ridge)
        return Fit(weight, mean[size:] - weight @ mean[:size])


def solve(covariance: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """Return ``cross (covariance + ridge m I)^-1`` with m the mean of the diagonal; directions without variance give 0.

    Args:
        covariance: P x P, symmetric.
        cross: Q x P.
    """
    if ridge and (mean := covariance.diagonal().mean()) > 0:
        regular = covariance + ridge * mean * torch.eye(len(covariance), dtype=covariance.dtype)
        factor, fault = torch.linalg.cholesky_ex((regular + regular.T) / 2)
        if not fault:  # quicker by far
            return torch.cholesky_solve(cross.T, factor).T
    values, vectors = _spectrum(covariance, ridge)
    return (cross @ vectors * _inverse(values)) @ vectors.T


def roots(covariance: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Return ``(covariance + ridge m I)^(1/2)`` and its inverse, both symmetric; without variance both are 0."""
    values, vectors = _spectrum(covariance, ridge)
    inverse = _inverse(values).sqrt()
    return (vectors * torch.where(inverse > 0, values, 0).sqrt()) @ vectors.T, (vectors * inverse) @ vectors.T


def low_rank(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return L (M x rank) and R (N x rank) with ``L R^T`` the matrix of that rank nearest to ``left right^T``, both
    carrying the roots of its singular values (Eckart and Young, 1936).

    The product is never formed: a head's factors (M x K and N x K) are far thinner than it.
    """
    (left_basis, left_core), (right_basis, right_core) = torch.linalg.qr(left), torch.linalg.qr(right)
    u, values, v = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    root = values[:rank].sqrt()
    missing = (0, max(0, rank - len(values)))
    pad = torch.nn.functional.pad
    return pad(left_basis @ u[:, :rank] * root, missing), pad(right_basis @ v[:rank].T * root, missing)


def _spectrum(covariance: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    values = values.clamp(min=0)
    return values + ridge * values.mean(), vectors


def _inverse(values: Tensor) -> Tensor:
    return torch.where(values > 1e-12 * values.max(), 1 / values.clamp(min=torch.finfo(values.dtype).tiny), 0)
