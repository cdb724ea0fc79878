"""Measuring on a machine that is shared: alternating runs, peak memory of one call, and what a result was made with."""

import json
import logging
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch

from fairseq_star.runtime.memory import peak_extra_bytes, synchronize
from fairseq_star.runtime.provenance import commit, processor

__all__ = [
    "MEBIBYTE",
    "ROOT",
    "Timing",
    "alternate",
    "environment",
    "heading",
    "peak_extra_bytes",
    "pyplot_or_none",
    "synchronize",
    "write_result",
]
ROOT = Path(__file__).resolve().parent.parent
MEBIBYTE = 2**20


class Timing(NamedTuple):
    """Of one function among several run in turn."""

    median: float  # seconds
    best: float  # seconds
    speedup: float  # median over rounds of (first function's time / this one's in the same round)


def alternate(functions: list[Callable[[], object]], rounds: int, device: str, clock: str = "wall") -> list[Timing]:
    """Run the functions in turn, ``rounds`` times after one warm-up each.

    With ``clock`` "cpu" times are this thread's CPU time: other processes then take part of the caches, not of the
    time.

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


def heading(title: str, made_with: dict[str, str]) -> list[str]:
    """The first lines of a result in Markdown: its title, and what ``environment`` says it was made with."""
    return [f"# {title}", "", *(f"* {key}: `{value}`" for key, value in made_with.items())]


def write_result(folder: Path, name: str, table: str, result: dict) -> None:
    """Write a result as folder/name.json and its table as folder/name.md."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / f"{name}.md").write_text(table)


def pyplot_or_none():
    """matplotlib's pyplot without a screen; None, said aloud, where matplotlib is missing."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # fairseq lets everybody's DEBUG through
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no plot (pip install matplotlib)")
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
