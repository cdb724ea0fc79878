"""What a cache gives in place of a teacher's encoding: those states that were asked of it, under their numbers."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fairseq_star.encoder.frames import Frames
from fairseq_star.encoder.modules import Encoding

PROJECTED_FEATURES = -1  # among the numbers of states; 0 .. L are those of ``Encoding.hidden_states``


class KeptStates(Sequence[Tensor]):
    """The hidden states that were requested of a cache, under the numbers they have among all.

    Raises:
        KeyError: another one is taken.
    """

    def __init__(self, states: Mapping[int, Tensor], count: int):
        self._states, self._count = states, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Tensor:
        number += self._count if number < 0 else 0
        if not 0 <= number < self._count:
            raise IndexError(number)
        return self._states[number]


class PlainRows:
    """States as they are, rounded to a precision: a row is a frame's D numbers."""

    kind = None  # the precision's own name tells such entries apart

    def __init__(self, dtype: torch.dtype, width: int):
        self.row_dtype, self.row_width = dtype, width

    def to(self, device: torch.device) -> "PlainRows":
        """Itself: it has nothing that lies on a device."""
        return self

    def encode(self, place: int, states: Tensor) -> Tensor:
        """Rows of one state's frames, B x T x D; rounded where they are copied to."""
        return states

    def all_finite(self, rows: Tensor) -> bool:
        """Return whether an utterance's rows (S x n x D) hold no number beyond the precision's range."""
        # A sum is finite where all is, and needs no memory.
        return bool(torch.isfinite(rows.sum(dtype=torch.float64)))

    def give(self, rows: Tensor, frames: Frames, numbers: Sequence[int], dtype: torch.dtype) -> Encoding:
        """The encoding of a batch: states ``numbers`` of S x B x T rows, zero past an utterance's end."""
        given = dict(zip(numbers, rows.to(dtype).unbind(0), strict=True))
        return Encoding(frames, given.get(PROJECTED_FEATURES), KeptStates(given, max(numbers) + 1))
