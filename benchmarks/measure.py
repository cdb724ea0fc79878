"""Measuring on a machine that is shared: alternating runs, peak memory of one call, and what a result was made with."""

import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent
MEBIBYTE = 2**20


class Timing(NamedTuple):
    """Of one function among several run in turn."""

    median: float  # seconds
    best: float  # seconds
    speedup: float  # median over rounds of (first function's time / this one's in the same round)


def alternate(functions: list[Callable[[], object]], rounds: int, device: str, clock: str = "wall") -> list[Timing]:
    """Run the functions in turn, `rounds` times after one warm-up each.

    With `clock` "cpu" times are this thread's CPU time: other processes then take part of the caches, not of the time.

    Ratios are taken within a round, so that another process's load weighs on both sides of each.
    """
    now = time.perf_counter if clock == "wall" else time.thread_time
    times = [[] for _ in functions]
    for number in range(rounds + 1):
        for function, own in zip(functions, times, strict=True):
            synchronize(device)
            start = now()
            function()
            synchronize(device)
            if number:
                own.append(now() - start)
    return [
        Timing(statistics.median(own), min(own), statistics.median(a / b for a, b in zip(times[0], own, strict=True)))
        for own in times
    ]


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
        before = _status("VmRSS")
        function()
        return _status("VmHWM") - before
    except OSError:  # not Linux, or not allowed: the mark may lie above what is held, so this can only be too small
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        function()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def _status(key: str) -> int:
    """Bytes of one memory line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no line {key}")


def environment(device: str, command: str) -> dict[str, str]:
    """What a result was made with: hardware, versions, commit, command, load."""
    hardware = f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used"
    if device != "cpu":
        hardware = f"{torch.cuda.get_device_name()}; host {hardware}"
    return {
        "date": date.today().isoformat(),
        "command": command,
        "commit": _commit(),
        "hardware": hardware,
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
        "load average at the start": f"{os.getloadavg()[0]:.1f} (other processes' share of the cores is in the times)",
    }


def _processor() -> str:
    """The processor's name, its architecture where no name is to be found."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


def _commit() -> str:
    """Commit of the working tree, with a note where files differ from it."""

    def git(*arguments: str) -> str:
        result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return result.stdout.strip() if result.returncode == 0 else ""

    commit = git("rev-parse", "--short", "HEAD") or "none yet"
    return commit + (" and uncommitted changes" if git("status", "--porcelain") else "")
