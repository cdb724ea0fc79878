"""Groups of utterances computed together, and their valid frames: padding never enters a product."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fairseq_star.losses.tgm.bases import Bases


@dataclass(frozen=True)
class Group:
    """N utterances with one number of frames T', read state by state so that only a few states are ever copied.

    Attributes:
        utterances: their slice of the batch.
        num_frames: T', frames read; every utterance's valid frames are among them.
        dtype: precision of products, sums and gradients.
        padding: N x T' x 1 bool, True = padded; None where all T' frames of all N utterances are valid.
        bases: where the teacher's states are coordinates; then D_t in all shapes is their width d.
    """

    teacher_states: Sequence[Tensor]  # M of B x T x D_t
    student_states: Sequence[Tensor]  # M of B x T x D_s
    utterances: slice
    num_frames: int
    dtype: torch.dtype
    padding: Tensor | None = None
    bases: Bases | None = None

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        """Return state ``index`` as X: N x T' x D_t and Y: N x T' x D_s with zeros in padded rows.

        Zeroing is by ``masked_fill``, not by a product: padded rows may hold NaN. On the CPU both are in the
        accumulation precision; elsewhere they keep theirs.
        """
        pair = []
        for states in (self.teacher_states, self.student_states):
            state = states[index].detach()[self.utterances, : self.num_frames]
            if not state.is_cuda:
                state = state.to(self.dtype)
            pair.append(state if self.padding is None else state.masked_fill(self.padding, 0.0))
        return pair[0], pair[1]

    @cached_property
    def count(self) -> int | Tensor:
        """Return n, the valid frames: a number where all N utterances have T', else N x 1 x 1."""
        if self.padding is None:
            return self.num_frames
        return (~self.padding).sum(dim=1, keepdim=True).to(self.dtype)

    def ones(self, like: Tensor) -> Tensor:
        """Return 1 in valid rows and 0 in padded ones: N x T' x 1 in the precision of ``like``."""
        if self.padding is None:
            return like.new_ones(self.size, self.num_frames, 1)
        return (~self.padding).to(like.dtype)

    def overlap(self, index: int) -> Tensor | None:
        """Return O of the pair (``index`` - 1, ``index``) in the precision of products; None without bases."""
        overlap = None if self.bases is None else self.bases.overlap(index)
        return None if overlap is None else overlap.to(self.dtype)

    @property
    def teacher_width(self) -> int:
        """Return D_t of the states themselves."""
        return self.teacher_states[0].shape[-1] if self.bases is None else self.bases.width

    @property
    def size(self) -> int:
        """Return N."""
        return self.utterances.stop - self.utterances.start

    @property
    def device(self) -> torch.device:
        """Return the states' device."""
        return self.student_states[0].device


def groups(
    teacher_states: Sequence[Tensor],
    student_states: Sequence[Tensor],
    host_lengths: list[int] | None,
    device_lengths: Tensor | None,
    dtype: torch.dtype,
    *,
    batched: bool,
    bases: Bases | None = None,
) -> Iterator[Group]:
    """Split a batch for computation.

    Without ``batched`` (on the CPU) every utterance is a group of its own, cut to its frames: padding costs nothing.
    With it (on accelerators) the batch is one group with zeroed padding, cut to the longest utterance where the host
    knows it: launches cost more than padded rows there, and nothing is read back from the device.
    """
    num_utterances, num_frames, _ = student_states[0].shape
    if not batched:
        for index in range(num_utterances):
            frames = num_frames if host_lengths is None else host_lengths[index]
            yield Group(teacher_states, student_states, slice(index, index + 1), frames, dtype, bases=bases)
        return
    frames = num_frames if host_lengths is None else max(host_lengths)
    padding = None
    if device_lengths is not None:
        positions = torch.arange(frames, device=student_states[0].device)  # [T']
        padding = (positions[None, :] >= device_lengths[:, None])[:, :, None]  # N x T' x 1
    yield Group(teacher_states, student_states, slice(0, num_utterances), frames, dtype, padding, bases)
