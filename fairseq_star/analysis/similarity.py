"""Similarity of representations of the same frames: linear CKA, and the distance of temporal Gram matrices."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def linear_cka(first: Sequence[Tensor], second: Sequence[Tensor]) -> np.ndarray:
    """Compute linear centred kernel alignment of all pairs of representations (Kornblith et al., ICML 2019, section 3).

        CKA(X, Y) = ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F),   columns of X and Y centred

    1 where the two differ by a rotation and a scale alone, near 0 where they are unrelated and n is far above D.

    Args:
        first, second: n x D_i each, the same n frames throughout.

    Returns:
        len(first) x len(second), in 0 .. 1; 0 for a representation that is constant.
    """

    def unit(states: Tensor) -> Tensor:
        centred = states.double() - states.double().mean(0)
        norm = torch.linalg.matrix_norm(centred.T @ centred).sqrt()
        return centred / norm if norm > 0 else centred

    columns = [unit(states) for states in second]
    rows = (unit(states) for states in first)
    return np.array([[float(torch.linalg.matrix_norm(column.T @ row) ** 2) for column in columns] for row in rows])


def tgm_error(teacher: Tensor, student: Tensor) -> float:
    """Compute ||G_t - G_s||_F / ||G_t||_F of two temporal Gram matrices: 0 where they agree, 1 for an all-zero student.

    It is the root of the layer-wise loss without the teacher's scale, so that layers can be compared.
    """
    return float(torch.linalg.matrix_norm(teacher - student) / torch.linalg.matrix_norm(teacher))
