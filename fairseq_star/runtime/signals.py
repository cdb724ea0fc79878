"""Signal handlers that do not corrupt the heap, and data workers that end by their parent's SIGTERM alone."""

import faulthandler
import os
import signal
import sys
import threading

from torch.utils.data import get_worker_info


def handle_signals_on_a_stack_of_their_own() -> None:
    """Run the signal handlers of the calling thread, which must be the main one, on a stack of their own.

    oneDNN's generated matrix products, by which torch computes HuBERT's positional convolution, keep the address of a
    buffer in the stack pointer. The system writes a handler's frame below it: a SIGTERM, or the SIGCHLD of a data
    worker that ends, then overwrites what lies there, and the run ends in ``corrupted size vs. prev_size`` or a
    segmentation fault (uxlfoundation/oneDNN#4845, in torch 2.11; fixed by oneDNN#4855). CPython's handlers take an
    alternate stack where there is one (``SA_ONSTACK``), and ``faulthandler`` makes one; its tracebacks of
    crashes are welcome too.
    """
    if not faulthandler.is_enabled() and sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)


_outliving = False


def outlive_foreign_sigterm() -> None:
    """In a data worker, from now on end by a SIGTERM of the parent alone; elsewhere do nothing.

    A cluster signals every process of a job. torch's data workers would all die of it, and with them the update that
    the parent still has to finish.
    """
    global _outliving
    if _outliving or get_worker_info() is None or not hasattr(signal, "sigwaitinfo"):  # macOS has none
        return
    _outliving = True
    parent = os.getppid()
    # Blocked here, so in all later threads; received by the one that waits, which can see who sent it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while os.getppid() == parent and signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True, name="outlive-sigterm").start()
