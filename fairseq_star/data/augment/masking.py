"""Which frames and feature channels are hidden from the student: fairseq's spans, a draw for each utterance.

fairseq's HuBERT draws for a whole batch, from numpy's global state, and leaves every utterance as many hidden frames as
the one with the fewest (``require_same_masks``). Here each utterance is drawn by itself, by fairseq's own function with
its own seeding, so that what is hidden depends neither on the neighbours in a batch nor on who loads it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from fairseq.data.data_utils import compute_mask_indices

from fairseq_star.data.augment.options import ViewConfig
from fairseq_star.errors import StarError

MIN_SPANS = 2  # of hidden frames, as HuBERT's apply_mask asks for
TRIES = 100


@dataclass(frozen=True)
class Spans:
    """How spans are drawn along one axis; names as in fairseq's ``HubertConfig``."""

    option: str  # task.mask or task.mask_channel, for messages
    prob: float
    length: int
    selection: str
    other: float
    no_overlap: bool
    min_space: int
    min_spans: int

    def draw(self, size: int, *, seed: int, epoch: int, index: int) -> np.ndarray:
        """``size`` booleans, True = hidden: :func:`fairseq.data.data_utils.compute_mask_indices` of this utterance.

        fairseq refuses a draw that hides all; the next seed is taken then. Between one and ``size - 1`` are hidden.
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
                    no_overlap=self.no_overlap,
                    min_space=self.min_space,
                    require_same_masks=False,
                    seed=seed + attempt,
                    epoch=epoch,
                    indices=torch.tensor([index]),
                )
            except ValueError:  # "the entire sequence is masked", or there is no room for so many spans
                continue
            return mask
        return np.arange(size) < min(self.length, size // 2)

    def check(self, size: int, what: str, mend: str) -> None:
        """See that spans fit into ``size`` frames or channels, and that fairseq can draw them.

        Args:
            what: has that size, for messages, such as "the shortest utterance, PATH, has 12 frames".
            mend: what else than a smaller length would help.

        Raises:
            StarError: they do not, or it cannot.
        """
        prob = f"{self.option}_prob={self.prob:g}"
        if not 0 < self.prob < 1:
            raise StarError(f"{prob} must be from 0 to below 1")
        if self.length < 1 or self.other < 0 or self.min_space < 0:
            raise StarError(f"{self.option}_length must be 1 or more, {self.option}_other and _min_space 0 or more")
        if self.length >= size:
            raise StarError(f"{self.option}_length={self.length} is too long: {what}; lower it{mend}")
        try:
            self.draw(size, seed=1, epoch=1, index=0)
        except (AttributeError, TypeError) as error:  # parts of fairseq 0.12's function are of numpy 1
            raise StarError(
                f"{self.option}_selection={self.selection} with overlap={not self.no_overlap} cannot be drawn by this "
                f"fairseq beside numpy {np.__version__} ({error}); take static, normal or poisson with overlap"
            ) from error


@dataclass(frozen=True)
class Masking:
    """What ``task.mask_*`` asks for.

    Args:
        frames: spans along time; None: no frame is hidden.
        channels: spans along the features' channels; None: no channel is zeroed.
        num_channels: of the student's features.
        seed: of the run.
    """

    frames: Spans | None
    channels: Spans | None
    num_channels: int
    seed: int

    @classmethod
    def of(cls, cfg: ViewConfig, num_channels: int, seed: int) -> "Masking | None":
        """As the options say; None where they hide nothing.

        Raises:
            StarError: a number that cannot be.
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
                no_overlap=getattr(cfg, f"no_{name}_overlap"),
                min_space=getattr(cfg, f"{name}_min_space"),
                min_spans=min_spans,
            )

        frames, channels = spans("task.mask", "mask", MIN_SPANS), spans("task.mask_channel", "mask_channel", 1)
        if channels is not None:
            channels.check(num_channels, f"the student has {num_channels} channels", "")
        return cls(frames, channels, num_channels, seed) if frames or channels else None

    def draw_frames(self, num_frames: int, epoch: int, index: int) -> np.ndarray | None:
        """Hidden frames of an utterance: ``num_frames`` booleans; None where no utterance has any."""
        return self.frames and self.frames.draw(num_frames, seed=self.seed, epoch=epoch, index=index)

    def draw_channels(self, epoch: int, index: int) -> np.ndarray | None:
        """Zeroed channels of an utterance likewise."""
        return self.channels and self.channels.draw(self.num_channels, seed=self.seed + 1, epoch=epoch, index=index)
