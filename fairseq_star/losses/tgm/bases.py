"""The loss for a teacher's states given by their coordinates in a basis of each layer.

Let X_l ~ Z_l P_l^T with coordinates Z_l: T x d and a basis P_l: D_t x d of orthonormal columns. Then

    X_l X_l^T = Z_l Z_l^T        X_{l-1} X_l^T = Z_{l-1} O_l Z_l^T,   O_l = P_{l-1}^T P_l  (d x d)

so the layer-wise term takes coordinates as if they were states of width d, and the two bases of a cross-layer matrix
meet in O_l alone. It is applied where that is cheapest: in the T x T form to the rows of the left state, Z_{l-1} O_l;
in the D x D form to the small matrices and never to T rows, with A_l = Z_l^T Z_l and R_l = Z_l^T Y_l:

    <A_{l-1}, A_l>  becomes  <O_l^T A_{l-1} O_l, A_l>          <R_{l-1}, R_l>  becomes  <O_l^T R_{l-1}, R_l>

and the gradient of Y_l takes O_l^T R_{l-1} and O_{l+1} R_{l+1} in place of R_{l-1} and R_{l+1}.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fairseq_star.errors import StarError


@dataclass(frozen=True)
class Bases:
    """The bases of M states, as far as the loss needs them."""

    width: int  # D_t, of the states themselves: kl divides by its root
    overlaps: Sequence[Tensor]  # O_1 .. O_{M-1}, d x d each, float32 or float64, on the states' device

    def overlap(self, index: int) -> Tensor | None:
        """Return O_l of the pair (``index`` - 1, ``index``); None for state 0, which has no left neighbour."""
        return self.overlaps[index - 1] if index else None

    def check(self, teacher_states: Sequence[Tensor]) -> None:
        """Check that they fit ``teacher_states`` (M of B x T x d).

        Raises:
            StarError: they do not.
        """
        dim, device = teacher_states[0].shape[-1], teacher_states[0].device
        if len(self.overlaps) != len(teacher_states) - 1:
            raise StarError(
                f"{len(teacher_states)} teacher states in reduced coordinates have {len(teacher_states) - 1} overlaps "
                f"of neighbouring bases, not {len(self.overlaps)}."
            )
        for index, overlap in enumerate(self.overlaps, start=1):
            if overlap.shape != (dim, dim) or overlap.device != device:
                raise StarError(
                    f"overlap {index} has shape {tuple(overlap.shape)} on {overlap.device}, the teacher's coordinates "
                    f"are {dim} wide on {device}."
                )
