"""The requested hidden states of a teacher, as a cache returns them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fairseq_star.encoder.frames import Frames
from fairseq_star.encoder.modules import Encoding

PROJECTED_FEATURES = -1  # among the numbers of states; 0 .. L are those of ``Encoding.hidden_states``


class KeptStates(Sequence[Tensor]):
    """The requested hidden states, indexed by their numbers among all.

    Raises:
        KeyError: a state that was not requested.
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
    """Uncompressed states, rounded to a precision: a row is a frame's D numbers."""

    kind = None  # the precision's own name distinguishes such entries

    def __init__(self, dtype: torch.dtype, width: int):
        self.row_dtype, self.row_width = dtype, width

    def to(self, device: torch.device) -> "PlainRows":
        """Return itself: it has no tensors."""
        return self

    def encode(self, place: int, states: Tensor) -> Tensor:
        """Return the rows of one state's frames, B x T x D; the copy into an entry rounds them."""
        return states

    def all_finite(self, rows: Tensor) -> bool:
        """Return whether an utterance's rows (S x n x D) hold no number beyond the precision's range."""
        # A sum is finite where all is, and needs no memory.
        return bool(torch.isfinite(rows.sum(dtype=torch.float64)))

    def give(self, rows: Tensor, frames: Frames, numbers: Sequence[int], dtype: torch.dtype) -> Encoding:
        """Return the encoding of a batch: states ``numbers`` of S x B x T rows, zero past an utterance's end."""
        given = dict(zip(numbers, rows.to(dtype).unbind(0), strict=True))
        return Encoding(frames, given.get(PROJECTED_FEATURES), KeptStates(given, max(numbers) + 1))
