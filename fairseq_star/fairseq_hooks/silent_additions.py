"""Noise and other speakers that turn out silent: how many utterances went without is counted and logged."""

import logging
from collections.abc import Sequence

from fairseq.logging import metrics

from fairseq_star.data.augment.student import SILENT

logger = logging.getLogger(__name__)


class SilentAdditions:
    """The count of a run."""

    KEY = "left_clean"  # in logging outputs and in the log

    def __init__(self):
        self.count = self.seen = 0  # utterances of this pass over the training set, of all workers
        self._example_logged = False

    def begin_pass(self) -> None:
        """Count anew; log what was counted in the pass before."""
        if self.count:
            logger.warning(
                f"augmentation: to {self.count:,} of {self.seen:,} utterances of the pass just ended nothing could be "
                "added, since it was silent; take silence out of the recordings of task.noise_manifest"
            )
        self.count = self.seen = 0

    def report(self, batch: dict) -> int:
        """Take the sentences out of a batch, log the first of a run, and return how many there are."""
        sentences = batch.pop(SILENT, ())
        if sentences and not self._example_logged:
            self._example_logged = True
            logger.warning(f"augmentation: nothing added to {sentences[0]}; further ones are counted ({self.KEY})")
        return len(sentences)

    def reduce(self, logging_outputs: Sequence[dict]) -> None:
        """Count what all workers met in an update."""
        silent = int(sum(log.get(self.KEY, 0) for log in logging_outputs))
        self.count += silent
        self.seen += int(sum(log.get("nsentences", 0) for log in logging_outputs))
        if self.count:
            metrics.log_scalar_sum(self.KEY, silent, priority=901)
