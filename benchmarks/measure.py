"""Measuring on a machine that is shared: alternating runs, peak memory of one call, and what a result was made with."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fairseq_star.environment import commit, processor  # noqa: E402
from fairseq_star.profiling.memory import peak_extra_bytes, synchronize  # noqa: E402

__all__ = ["MEBIBYTE", "ROOT", "Timing", "alternate", "environment", "peak_extra_bytes", "synchronize"]
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


def environment(device: str, command: str) -> dict[str, str]:
    """What a result was made with: hardware, versions, commit, command, load."""
    hardware = f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used"
    if device != "cpu":
        hardware = f"{torch.cuda.get_device_name()}; host {hardware}"
    return {
        "date": date.today().isoformat(),
        "command": command,
        "commit": commit() or "none yet",
        "hardware": hardware,
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
        "load average at the start": f"{os.getloadavg()[0]:.1f} (other processes' share of the cores is in the times)",
    }
