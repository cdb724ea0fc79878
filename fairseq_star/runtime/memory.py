"""Peak memory of one call."""

import resource
from collections.abc import Callable
from pathlib import Path

import torch


def synchronize(device: str) -> None:
    """Wait for an accelerator; nothing to wait for on the CPU."""
    if device != "cpu":
        torch.cuda.synchronize()


def peak_extra_bytes(function: Callable[[], object], device: str) -> int:
    """Highest memory during one call beyond what was held before it.

    On CUDA by the allocator's count. On the CPU by the process's resident set, whose high-water mark is set back first
    (Linux); call it once, in a fresh process: memory the allocator keeps from earlier calls would hide some.
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
    except OSError:  # not Linux, or not allowed: the mark may lie above what is held, so this can only be too small
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        function()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def process_bytes(key: str) -> int:
    """Bytes of one memory line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no line {key}")
