"""Data workers, watched: one that dies, or that hands over nothing for long, ends the run in one line.

fairseq loads ahead in a thread of its own, in which torch installs no handler for the end of a worker. A worker that
dies while it hands over a batch leaves that thread in the middle of reading it, and the run waits for ever. So the main
thread looks at the workers once a second while it waits for a batch; where batches are ready nothing is added.
"""

import functools
import logging
import multiprocessing
import queue
import signal
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import torch
from fairseq.data.iterators import BufferedIterator, EpochBatchIterator

from fairseq_star.errors import StarError, exit_on_star_error
from fairseq_star.fairseq_hooks import stopping

logger = logging.getLogger(__name__)

INTERVAL = 1.0  # s
WARN_AFTER, PATIENCE = 60.0, 1800.0  # s without a batch


def watch(epochs: EpochBatchIterator) -> EpochBatchIterator:
    """Have all iterators that ``epochs`` makes from now on watch their data workers, and return it."""
    if "_get_iterator_for_epoch" in vars(epochs):  # the same ones as in the epoch before
        return epochs
    make = epochs._get_iterator_for_epoch

    def made(*arguments, **options):
        counting = make(*arguments, **options)
        if counting is not None:
            counting._itr = WatchedIterator(counting._itr)
        return counting

    epochs._get_iterator_for_epoch = made
    return epochs


class WatchedIterator:
    """The batches of fairseq's iterator, or of torch's loader, ending in one line where none will come any more.

    Raises:
        SystemExit: a data worker, or the thread that loads ahead, has died; or no batch came for :data:`PATIENCE`.
    """

    def __init__(self, batches):
        self._batches = batches
        if isinstance(batches, BufferedIterator):
            batches._queue = _WatchedQueue(batches)
        elif threading.current_thread() is threading.main_thread():
            _end_by_signal()

    def __iter__(self) -> "WatchedIterator":
        return self

    def __next__(self):
        try:
            return next(self._batches)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            _worker_died(error)


class _WatchedQueue(queue.Queue):
    """The queue between fairseq's loading thread and the main thread."""

    def __init__(self, batches: BufferedIterator):
        super().__init__(batches._queue.maxsize)
        self._batches = batches

    def get(self, block: bool = True, timeout: float | None = None):
        if not block or timeout is not None:
            return super().get(block, timeout)
        start = time.monotonic()
        warned = False
        while True:
            try:
                return super().get(timeout=INTERVAL)
            except queue.Empty:
                torch._C._error_if_any_worker_fails()
            waited = time.monotonic() - start
            if not self._batches._consumer.is_alive() and self.empty():
                _end("the thread that loads batches ahead has died; its error is logged above")
            if waited > PATIENCE:
                _end(
                    f"no batch has come for {waited / 60:.0f} minutes, though all data workers are alive; see whether "
                    "the disk with the audio still responds. The same command resumes the run"
                )
            if waited > WARN_AFTER and not warned:
                warned = True
                logger.warning(f"no batch has come for {waited:.0f} s; all data workers are alive: is the disk slow?")


def _end_by_signal() -> None:
    """Where the main thread loads, have torch's handler, which raises wherever that thread is, end the run as well."""
    of_torch = signal.getsignal(signal.SIGCHLD)
    if not callable(of_torch) or isinstance(of_torch, functools.partial):  # none, or ours
        return

    def handle(of_torch: Callable, number: int, frame) -> None:
        try:
            of_torch(number, frame)
        except RuntimeError as error:
            _worker_died(error)

    signal.signal(signal.SIGCHLD, functools.partial(handle, of_torch))


def _worker_died(error: RuntimeError) -> NoReturn:
    _end(
        f"a data worker died ({str(error).splitlines()[0].rstrip(' .')}), as when the job's memory runs out; lower "
        "dataset.num_workers or dataset.max_tokens. The same command resumes the run"
    )


def _end(sentence: str) -> NoReturn:
    """End the run without waiting for workers that may never answer."""
    stopping.seconds_for_loading = 2.0
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the end of the others is no news
    for worker in multiprocessing.active_children():
        worker.kill()
    with exit_on_star_error():
        raise StarError(sentence)
    raise AssertionError  # for type checkers: the line above does not return
