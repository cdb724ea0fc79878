"""Exit of a run: on SIGTERM, which a cluster sends before it takes a machine away, it saves after the update and exits
with status 0; in any case fairseq's prefetching thread is ended first."""

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

seconds_for_loading = 30.0  # that the process waits for fairseq's thread at its end


class StopRequest:
    """A request to stop, agreed on by all workers.

    The signal reaches the workers in different updates, and one that stopped alone would leave the others waiting for
    its gradient. So each adds its own request (:attr:`wished`) to the logs that are summed over the workers after an
    update anyway, and all act on the sum (:meth:`reduce`).
    """

    KEY = "stop"  # in logging outputs

    def __init__(self):
        self.wished = 0
        self.agreed = False
        self._parent = os.getppid()

    def listen(self) -> None:
        """Take SIGTERM for a request; also the SIGINT that the kernel sends to a worker spawned by fairseq when its
        parent ends."""
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
        """Note, after an update, whether any worker got a request; all of them see the same logs."""
        self.agreed = sum(log.get(self.KEY, 0) for log in logging_outputs) > 0


def stop_on_request(request: StopRequest) -> None:
    """Make fairseq's training loop save and end after an update at which the workers agree to.

    The loop's own exits all validate first, which takes longer than a cluster waits; so the one function that it calls
    after each update is wrapped. Where that is missing (``python fairseq_cli/train.py``) nothing changes.
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
    """Make the interpreter wait at exit for fairseq's prefetching thread."""
    atexit.register(_end_loading)


def _end_loading() -> None:
    """Let each prefetching thread finish its batch: one in torch's code while the interpreter ends aborts the process
    with SIGABRT, and the run's exit status is lost."""
    deadline = time.monotonic() + seconds_for_loading
    for thread in threading.enumerate():
        if not isinstance(thread, BackgroundConsumer):
            continue
        thread._max_len = 0  # its loop's own way out, after the batch it is at
        while thread.is_alive() and time.monotonic() < deadline:
            while not thread._queue.empty():  # a full one would hold it
                thread._queue.get_nowait()
            thread.join(0.01)
