"""A codec's bases, offsets and spreads from a sample of frames that streams by: no frame is kept."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fairseq_star.errors import StarError
from fairseq_star.teacher.cache.codec import Codec

LEAST_SPREAD = 1e-4  # of the largest coordinate's; a coordinate that stands still in the sample must not divide by 0


class Moments:
    """First and second moments of the frames of S states, in float64.

    Args:
        cross: whether the products of all pairs of dimensions are summed (S x D x D), or squares alone (S x D).
    """

    def __init__(self, *, cross: bool):
        self.cross = cross
        self.num_frames = 0
        self.sums: list[tuple[Tensor, Tensor]] = []  # of each state: D, and D x D or D

    def add(self, states: Sequence[Tensor]) -> None:
        """Count an utterance in: S of n x D. One that holds NaN or infinities is left out."""
        if not all(bool(torch.isfinite(state.sum(dtype=torch.float64))) for state in states):
            return
        self.num_frames += len(states[0])
        for place, state in enumerate(states):
            frames = state.double()
            sums = frames.sum(0), frames.mT @ frames if self.cross else frames.square().sum(0)
            if place == len(self.sums):
                self.sums.append(sums)
            else:
                for total, more in zip(self.sums[place], sums, strict=True):
                    total.add_(more)

    def means(self) -> tuple[Tensor, Tensor]:
        """First and second moments of all states, on the CPU: S x D, and S x D x D or S x D."""
        first, second = (torch.stack(sums).cpu() / self.num_frames for sums in zip(*self.sums, strict=True))
        return first, second


def fit_codec(sample: Iterable[Sequence[Tensor]], numbers: Sequence[int], dim: int | None) -> Codec:
    """The codec of ``sample``.

    The basis of a state is that of the ``dim`` largest eigenvalues of its second moments (1/N) sum_t x_t x_t^T, which
    leaves of all bases of so many columns the largest share of the energy sum_t |x_t|^2. They are not centred, because
    Gram matrices are not.

    Args:
        sample: for each utterance its S states, n x D each.
        numbers: of the S states.
        dim: d; None for states as they are, in 8-bit numbers.

    Returns:
        The codec, on the CPU; in its ``about`` the frames of the sample and of each state the share of energy kept.

    Raises:
        StarError: the sample has no frame.
    """
    moments = Moments(cross=dim is not None)
    for states in sample:
        moments.add(states)
    if not moments.num_frames:
        raise StarError("task.teacher_cache_compression: the teacher's states are not finite for any utterance tried")
    first, second = moments.means()
    bases, explained = None, torch.ones(len(first))
    if dim is None:
        offsets, squares = first, second
    else:
        energies, vectors = torch.linalg.eigh(second)  # S x D rising, S x D x D
        bases = vectors[..., -dim:].flip(-1)
        offsets, squares = (bases.mT @ first[..., None])[..., 0], energies[:, -dim:].flip(-1)
        explained = squares.sum(1) / energies.sum(1)
    deviations = (squares - offsets.square()).clamp_min(0).sqrt()
    spreads = deviations.clamp_min(LEAST_SPREAD * deviations.amax(1, keepdim=True).clamp_min(1e-6)).sqrt()
    about = {"sample_frames": moments.num_frames, "explained_energy": [round(float(share), 6) for share in explained]}
    return Codec(
        tuple(numbers), offsets.float(), spreads.float(), None if bases is None else bases.float().contiguous(), about
    )
