"""Find the utterances that made a loss NaN or infinite, without a device synchronization after each batch."""

import logging
import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fairseq_star.data.augment.student import alone
from fairseq_star.encoder.frames import FrameGeometry
from fairseq_star.errors import StarError
from fairseq_star.fairseq_hooks.run_watch import RunWatch
from fairseq_star.losses.batch import unwrapped

logger = logging.getLogger(__name__)

EVERY = 100  # batches between two checks, each of which synchronizes with the device
SHOWN = 8  # utterances named in one sentence


class LossWatch:
    """Keeps the losses of the last batches on the device and checks them all at once.

    fairseq itself ends a run in float32 or bfloat16 as soon as the gradient is not finite, and passes the update's
    batches to the task once more; that is the moment to name the utterances (:meth:`find_utterance`). With ``fp16`` or
    ``amp`` it skips such an update without a reason, which the check every 100 batches logs.
    """

    def __init__(self):
        self._seen: list[tuple[int, Sequence[str], Tensor]] = []
        self._update, self._batches = -1, 0  # of the update at hand
        self._run = RunWatch()

    def remember(self, update: int, paths: Sequence[str], loss: Tensor) -> None:
        """Keep a batch's loss, a scalar on the device."""
        self._batches = self._batches + 1 if update == self._update else 1
        self._update = update
        self._seen.append((update, paths, loss.detach()))
        if len(self._seen) >= EVERY:
            self.check()

    def check(self) -> None:
        """Log the batches since the last check whose loss is not finite. Waits for the device."""
        seen, self._seen = self._seen, []
        if not seen:
            return
        values = torch.stack([loss for _, _, loss in seen]).tolist()
        for (update, paths, _), value in zip(seen, values, strict=True):
            if not math.isfinite(value):
                logger.warning(f"update {update}: the loss is {value} in the batch of {_listed(paths)}")
        self._run.look(seen[-1][0], sum(values) / sum(len(paths) for _, paths, _ in seen))

    def find_utterance(
        self, update: int, sample: dict, model: nn.Module, criterion: nn.Module, geometry: FrameGeometry
    ) -> None:
        """Log the utterances of a batch whose losses, each by itself, are not finite; all where there is none.

        Raises:
            StarError: it is the last batch of the update. All workers get that far, so that none waits for another.
        """
        paths: Sequence[str] = sample.get("paths", ())
        model = unwrapped(model)  # no worker's forward pass may wait for another's
        model._backward_hooks.clear()  # fairseq's NanDetector's, which expects tensors of a model

        @torch.no_grad()
        def loss_of(number: int) -> float:
            return criterion(model, alone(sample, number, geometry))[0].item()

        found = [path for number, path in enumerate(paths) if not math.isfinite(loss_of(number))]
        if found:
            logger.error(f"update {update}: the loss is not finite for {_listed(found)}")
        elif paths:
            logger.error(f"update {update}: no loss by itself is not finite in the batch of {_listed(paths)}")
        self._batches -= 1
        if self._batches == 0:
            raise StarError(
                f"update {update}: the gradient is not finite; the utterances are named above, crash.pt in "
                "checkpoint.save_dir holds the weights: leave those utterances out, or lower optimization.lr"
            )


def second_look() -> bool:
    """Return whether fairseq passes a batch again because the update's gradient was not finite.

    Its trainer does so while it handles the ``FloatingPointError`` (after saving crash.pt), and raises it again then.
    """
    return isinstance(sys.exception(), FloatingPointError)


def _listed(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(paths[:SHOWN]) + more
