"""Signals without harm to the heap: torch's convolutions may have their stack pointer in it when a signal comes."""

import faulthandler
import sys


def handle_signals_on_a_stack_of_their_own() -> None:
    """Have signal handlers of the calling thread, the one that signals come to, run on a stack of their own.

    oneDNN's generated matrix products, by which torch computes HuBERT's positional convolution, keep the address of a
    buffer in the stack pointer. The system writes a handler's frame below it: a SIGTERM, or the SIGCHLD of a data
    worker that ends, then overwrites what lies there, and the run ends in ``corrupted size vs. prev_size`` or a
    segmentation fault (uxlfoundation/oneDNN#4845, in torch 2.11; mended by oneDNN#4855). CPython's handlers take an
    alternate stack where there is one (``SA_ONSTACK``), and ``faulthandler`` makes one; that it also tells where a
    crash was is welcome.
    """
    if not faulthandler.is_enabled() and sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)
