"""Frames that a term is computed over: all of an utterance's own, the masked ones, or the unmasked ones.

Shapes: B utterances, T frames of the padded batch, n_b valid frames of utterance b, N selected frames of the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

ALL, MASKED, UNMASKED = "all", "masked", "unmasked"
WHICH = (ALL, MASKED, UNMASKED)


@dataclass(frozen=True)
class Selection:
    """Selected frames of a batch, on the host, so that reading them needs no synchronization with the device."""

    frames: Sequence[np.ndarray]  # numbers of each utterance's selected frames, rising
    _on_device: dict = field(default_factory=dict, repr=False)  # index and weights, which all terms and layers share

    @classmethod
    def of(cls, which: str, frame_lengths: Sequence[int], masked: Sequence[np.ndarray] | None) -> "Selection":
        """Select ``which`` of :data:`WHICH`; without ``masked`` (B arrays of n_b booleans) every frame is unmasked."""
        if masked is None:
            masked = [np.zeros(n, dtype=bool) for n in frame_lengths]
        if which == ALL:
            return cls([np.arange(n) for n in frame_lengths])
        return cls([np.flatnonzero(of_one if which == MASKED else ~of_one) for of_one in masked])

    @property
    def counts(self) -> list[int]:
        """Return the number of selected frames of each utterance."""
        return [len(numbers) for numbers in self.frames]

    def __len__(self) -> int:
        return sum(self.counts)

    def take(self, states: Tensor) -> Tensor:
        """Return the selected frames of ``states`` (B x T x D), utterance after utterance: N x D."""
        total = states.size(1)
        index = self._once(
            total,
            states.device,
            lambda: np.concatenate([row * total + numbers for row, numbers in enumerate(self.frames)]),
        )
        return states.reshape(-1, states.size(-1)).index_select(0, index)

    def sum_of_means(self, values: Tensor) -> Tensor:
        """Return the sum over utterances of the mean over their selected frames' ``values`` (N), 0 where none is."""
        counts = self.counts
        weights = self._once(
            values.dtype, values.device, lambda: np.repeat([1 / count if count else 0.0 for count in counts], counts)
        )
        return (values * weights).sum()

    def _once(self, what: object, device: torch.device, make: Callable[[], np.ndarray]) -> Tensor:
        """Return the cached result of ``make`` on a device; ``what`` is its key, and its dtype where it is one."""
        if (what, device) not in self._on_device:
            dtype = what if isinstance(what, torch.dtype) else None
            self._on_device[what, device] = torch.from_numpy(make()).to(device, dtype, non_blocking=True)
        return self._on_device[what, device]

    def packed(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Return each of ``states`` (B x T x D) with its selected frames moved to the front, for the utterances that
        have any: B' x T' x D, with the :attr:`counts` above 0 as frame lengths. Padding holds other frames."""
        rows = [(row, numbers) for row, numbers in enumerate(self.frames) if len(numbers)]
        longest = max(len(numbers) for _, numbers in rows)
        total = states[0].size(1)
        index = np.stack([row * total + np.resize(numbers, longest) for row, numbers in rows])
        where = torch.from_numpy(index).to(states[0].device, non_blocking=True)
        # Padding repeats frames, rather than to point to one that gathers the gradient of all.
        return [
            state.reshape(-1, state.size(-1)).index_select(0, where.flatten()).view(*where.shape, -1)
            for state in states
        ]
