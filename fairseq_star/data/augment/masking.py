"""Masks of frames and of feature channels for the student: fairseq's spans, drawn for each utterance.

fairseq's HuBERT draws for a whole batch, from numpy's global state, and leaves every utterance as many masked frames as
the one with the fewest (``require_same_masks``). Here each utterance is drawn by itself, by fairseq's own function with
its own seeding, so that a mask depends neither on the rest of the batch nor on the worker that loads it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from fairseq.data.data_utils import compute_mask_indices

from fairseq_star.data.augment.options import AugmentConfig
from fairseq_star.errors import StarError

MIN_SPANS = 2  # of masked frames, as in HuBERT's apply_mask
TRIES = 100


@dataclass(frozen=True)
class Spans:
    """Distribution of masked spans along one axis; names as in fairseq's ``HubertConfig``."""

    option: str  # task.mask or task.mask_channel, for messages
    prob: float
    length: int
    selection: str
    other: float
    min_spans: int

    def draw(self, size: int, *, seed: int, epoch: int, index: int) -> np.ndarray:
        """Draw ``size`` booleans, True = masked: :func:`fairseq.data.data_utils.compute_mask_indices` of an utterance.

        fairseq refuses a draw that masks all; the next seed is taken then. Between one and ``size - 1`` are masked.
        """
        for attempt in range(TRIES):
            try:
                [mask] = compute_mask_indices(
                    (1, size),
                    None,
                    self.prob,
                    self.length,
                    self.selection,
                    self.other,
                    min_masks=self.min_spans,
                    require_same_masks=False,
                    seed=seed + attempt,
                    epoch=epoch,
                    indices=torch.tensor([index]),
                )
            except ValueError:  # "the entire sequence is masked", or there is no room for so many spans
                continue
            return mask
        return np.arange(size) < min(self.length, size // 2)

    def check(self, size: int, what: str, remedy: str) -> None:
        """Check that spans fit into ``size`` frames or channels.

        Args:
            what: states that size in messages, such as "the shortest utterance, PATH, has 12 frames".
            remedy: another remedy than a smaller length.

        Raises:
            StarError: they do not, or a value is out of range.
        """
        prob = f"{self.option}_prob={self.prob:g}"
        if not 0 < self.prob < 1:
            raise StarError(f"{prob} must be from 0 to below 1")
        if self.length < 1 or self.other < 0:
            raise StarError(f"{self.option}_length must be 1 or more, {self.option}_other 0 or more")
        if self.length >= size:
            raise StarError(f"{self.option}_length={self.length} is too long: {what}; lower it{remedy}")


@dataclass(frozen=True)
class Masking:
    """The masks of ``task.mask_*``.

    Args:
        frames: spans along time; None: no frame is masked.
        channels: spans along the features' channels; None: no channel is zeroed.
        num_channels: of the student's features.
        seed: of the run.
    """

    frames: Spans | None
    channels: Spans | None
    num_channels: int
    seed: int

    @classmethod
    def of(cls, cfg: AugmentConfig, num_channels: int, seed: int) -> "Masking | None":
        """Build from the options; None where they mask nothing.

        Raises:
            StarError: a value out of range.
        """

        def spans(option: str, name: str, min_spans: int) -> Spans | None:
            prob = getattr(cfg, f"{name}_prob")
            if prob == 0:
                return None
            return Spans(
                option=option,
                prob=prob,
                length=getattr(cfg, f"{name}_length"),
                selection=str(getattr(cfg, f"{name}_selection")),
                other=getattr(cfg, f"{name}_other"),
                min_spans=min_spans,
            )

        frames, channels = spans("task.mask", "mask", MIN_SPANS), spans("task.mask_channel", "mask_channel", 1)
        if channels is not None:
            channels.check(num_channels, f"the student has {num_channels} channels", "")
        return cls(frames, channels, num_channels, seed) if frames or channels else None

    def draw_frames(self, num_frames: int, epoch: int, index: int) -> np.ndarray | None:
        """Draw the masked frames of an utterance: ``num_frames`` booleans; None where no utterance has any."""
        return self.frames and self.frames.draw(num_frames, seed=self.seed, epoch=epoch, index=index)

    def draw_channels(self, epoch: int, index: int) -> np.ndarray | None:
        """Draw the zeroed channels of an utterance likewise."""
        return self.channels and self.channels.draw(self.num_channels, seed=self.seed + 1, epoch=epoch, index=index)
