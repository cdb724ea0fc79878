"""Speed in a run's log: speech a second, share of the machine's arithmetic, hours left."""

import time
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist
from fairseq.logging import metrics
from fairseq.logging.meters import Meter

from fairseq_star.encoder.config import EncoderConfig
from fairseq_star.encoder.macs import macs_of_sizes
from fairseq_star.runtime.ceiling import product_flops

WINDOW = 200  # updates that the remaining time is extrapolated from
DATA_WAIT, PAUSE = "data_wait", "_pause"  # what is logged; fairseq hides names that begin with an underscore
FORWARD, TRAINED = 1, 3  # passes: backward is two products for each of forward


def step_macs(num_samples: Sequence[int], student: EncoderConfig, teacher: EncoderConfig | None) -> float:
    """Return the multiply-accumulates of a training step on utterances of ``num_samples``, as :class:`Throughput`
    counts them.

    Args:
        num_samples: of each utterance.
        student: trained.
        teacher: run forward only; None: its states come from a cache.
    """
    passes = [(student, TRAINED), *([(teacher, FORWARD)] if teacher else [])]
    return sum(number * float(macs_of_sizes(config, np.asarray(num_samples)).sum()) for config, number in passes)


class Throughput:
    """Counts a worker's arithmetic and times its updates; never synchronizes with the device once a run has begun.

    Counted as for a model's utilization (MFU, arXiv:2204.02311, appendix B): the encoders' multiplications for the
    utterances' own samples. Padding, recomputed activations, the loss and the optimizer are not; a teacher's states
    that come from a cache are not either.
    """

    KEY = "product_seconds"  # of a batch: time that its multiplications would take as one large product

    def __init__(self):
        self._ceiling, self._max_update = 0.0, 0
        self._macs = 0.0  # since :meth:`take`
        self._ends: deque[tuple[int, float]] = deque(maxlen=WINDOW)

    @property
    def ceiling(self) -> float:
        """Return the floating point operations a second of a large product; 0 before :meth:`begin`."""
        return self._ceiling

    def begin(self, device: torch.device, dtype: torch.dtype, max_update: int) -> None:
        """Measure, once a process, the speed of a large product on ``device``.

        Args:
            max_update: at which the run ends; 0: unknown.
        """
        self._max_update = max_update
        self._ceiling = self._ceiling or product_flops(device, dtype)

    def count(self, config: EncoderConfig, num_samples: Sequence[int], passes: int = FORWARD) -> None:
        """Count passes of an encoder over utterances of ``num_samples``."""
        self.add(passes * float(macs_of_sizes(config, np.asarray(num_samples)).sum()))

    def add(self, macs: float) -> None:
        """Count multiply-accumulates."""
        self._macs += macs

    def take(self) -> float:
        """Return the seconds that the arithmetic since the last call would take as a large product."""
        macs, self._macs = self._macs, 0.0
        return 2 * macs / self._ceiling if self._ceiling else 0.0

    def end_update(self, number: int) -> None:
        """Note the end of an update, or of a batch of it."""
        if not self._ends or number != self._ends[-1][0]:
            self._ends.append((number, time.perf_counter()))

    def reduce(self, logging_outputs: Sequence[dict], speech: float) -> None:
        """Log the speed of all workers in an update of ``speech`` seconds."""
        world_size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        share = sum(log.get(self.KEY, 0) for log in logging_outputs) / world_size
        metrics.log_speed("speech", speech, priority=91, round=1)  # trained on in a second, by all workers
        metrics.log_speed("mfu", 100 * share, priority=92, round=1)  # percent of a large product's
        metrics.log_derived(DATA_WAIT, _waiting, priority=94)
        if self._max_update and len(self._ends) > 1:
            (first, start), (last, end) = self._ends[0], self._ends[-1]
            left = (self._max_update - 1 - last) * (end - start) / (last - first)
            metrics.log_scalar("hours_left", max(left, 0.0) / 3600, weight=0, priority=93, round=2)


def pause(seconds: float) -> None:
    """Leave out of :data:`DATA_WAIT` what fairseq spends between two updates on validating and saving."""
    with metrics.aggregate("train_inner"):
        metrics.log_scalar(PAUSE, seconds)


def _waiting(meters: Mapping[str, Meter]) -> float:
    """Percent of the time since the meters were reset that passed outside of updates, in wait for their batches."""
    if "ups" not in meters or "train_wall" not in meters:  # meters of a single update
        return 0.0
    elapsed = meters["ups"].elapsed_time  # from the end of the first update on
    spent = meters["train_wall"].sum + (float(meters[PAUSE].sum) if PAUSE in meters else 0.0)
    return round(100 * max(0.0, 1 - spent / elapsed), 1) if elapsed > 0 else 0.0
