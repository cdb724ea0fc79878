"""How a run ends: by SIGTERM, as a cluster sends it before it takes a machine away, after the update, saved, with
status 0; in any case without fairseq's thread that loads ahead."""

import atexit
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence

from fairseq import checkpoint_utils
from fairseq.data.iterators import BackgroundConsumer

from fairseq_star.fairseq_hooks.throughput import pause

logger = logging.getLogger(__name__)


class StopRequest:
    """A wish to stop, the same on all workers.

    The signal reaches the workers in different updates, and one that stopped alone would leave the others waiting for
    its gradient. So each adds its own wish (:attr:`wished`) to what is summed over the workers after an update anyway,
    and all act on the sum (:meth:`reduce`).
    """

    KEY = "stop"  # in logging outputs

    def __init__(self):
        self.wished = 0
        self.agreed = False
        self._parent = os.getppid()

    def listen(self) -> None:
        """Take SIGTERM for a wish; also the SIGINT with which the kernel tells a worker that fairseq spawned that its
        parent is gone."""
        if threading.current_thread() is not threading.main_thread():
            return
        signal.signal(signal.SIGTERM, self._wish)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell had it ignored
            signal.signal(signal.SIGINT, self._interrupt)

    def _wish(self, number: int, frame) -> None:
        self.wished = 1

    def _interrupt(self, number: int, frame) -> None:
        if os.getppid() == self._parent:
            signal.default_int_handler(number, frame)
        self._wish(number, frame)

    def reduce(self, logging_outputs: Sequence[dict]) -> None:
        """Note, after an update, whether any worker was asked to stop; all of them see the same logs."""
        self.agreed = sum(log.get(self.KEY, 0) for log in logging_outputs) > 0


def stop_when_asked(request: StopRequest) -> None:
    """Have fairseq's training loop save and end after an update at which the workers agree to.

    The loop's own ways to end all validate first, which takes longer than a cluster waits; so this goes round the one
    function it calls after each update. Where that is not there (``python fairseq_cli/train.py``) nothing changes.
    """
    loop = sys.modules.get("fairseq_cli.train")
    if loop is None:
        return
    go_on = loop.validate_and_save

    def validate_and_save(cfg, trainer, task, epoch_itr, valid_subsets, end_of_epoch):
        if not request.agreed:
            start = time.perf_counter()
            result = go_on(cfg, trainer, task, epoch_itr, valid_subsets, end_of_epoch)
            pause(time.perf_counter() - start)
            return result
        checkpoint_utils.save_checkpoint(cfg.checkpoint, trainer, epoch_itr, None)
        logger.info(f"stopped by SIGTERM after update {trainer.get_num_updates()}; the same command goes on from there")
        return [None], True

    loop.validate_and_save = validate_and_save
    request.listen()


def end_loading_at_exit() -> None:
    """Have the interpreter wait, as it ends, for the thread in which fairseq loads batches ahead."""
    atexit.register(_end_loading)


def _end_loading(seconds: float = 30.0) -> None:
    """A thread in torch's code while the interpreter ends takes the process down with SIGABRT, and the status the run
    wanted to end with, be it 0 or 1, is lost. So each is let come to its end, which is one batch away."""
    deadline = time.monotonic() + seconds
    for thread in threading.enumerate():
        if not isinstance(thread, BackgroundConsumer):
            continue
        thread._max_len = 0  # its loop's own way out, after the batch it is at
        while thread.is_alive() and time.monotonic() < deadline:
            while not thread._queue.empty():  # a full one would hold it
                thread._queue.get_nowait()
            thread.join(0.01)
