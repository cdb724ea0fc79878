"""Peak memory of one call."""

import resource
from collections.abc import Callable
from pathlib import Path

import torch

from fairseq_star.runtime.job import process_bytes


def synchronize(device: str) -> None:
    """Wait for an accelerator to finish; return at once on the CPU."""
    if device != "cpu":
        torch.cuda.synchronize()


def peak_extra_bytes(function: Callable[[], object], device: str) -> int:
    """Return the peak memory of one call beyond what was in use before it.

    On CUDA it is the allocator's count, on the CPU the process's resident set, whose high-water mark is reset first
    (Linux); call it once, in a fresh process: memory the allocator still has from earlier calls is not counted.
    """
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = process_bytes("VmRSS")
        function()
        return process_bytes("VmHWM") - before
    except OSError:  # not Linux, or not allowed: the mark may be above the memory in use, so this can only be too small
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        function()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
