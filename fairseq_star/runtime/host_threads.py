"""Cores shared with other programs: OpenMP's threads wait awake on an idle machine and asleep on a busy one.

A training step on the CPU is thousands of short parallel regions. libgomp's threads wait for each other and for the
next one by spinning for milliseconds, which is fastest where every thread has a core to itself. Beside other programs
it eats the very time slices that the thread waited for needs: a run then takes several times its fair share of time
(figures: benchmarks/README.md, "A busy machine"). Never to spin (``OMP_WAIT_POLICY=PASSIVE``) costs every run on an
idle machine.

libgomp reads its environment before any plugin is loaded. But it also spins 100 times only, instead of 300,000, as
long as it manages more threads than there are CPUs (its manual, ``GOMP_SPINCOUNT``). So while this process's threads
are seen to wait for CPUs, a thread beside them holds an OpenMP team of its own, asleep, which no work is ever given.
"""

import atexit
import os
import signal
import threading
from pathlib import Path

import torch

BUSY, IDLE = 0.10, 0.04
"""Share of the time its threads want to run in which the process waits for a CPU: from the one on, the machine is busy;
it is so no longer below the other."""
INTERVAL = 1.0  # s
_TASKS = Path("/proc/self/task")

_cores: "SharedCores | None" = None


def share_cores() -> bool:
    """From now on, have OpenMP's threads of this process wait asleep while other programs want its CPUs.

    What is computed does not change: as many threads as before do the same work.

    Returns:
        False, and nothing changed, where OpenMP isn't GNU's, has one thread, or the environment already says how it
        shall wait (``OMP_WAIT_POLICY``, ``GOMP_SPINCOUNT``), or the system does not tell who waits (Linux does).
    """
    global _cores
    if _cores is not None:
        return True
    if torch.get_num_threads() < 2 or not _is_libgomp() or waiting() is None:
        return False
    if any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")):
        return False
    _cores = SharedCores()
    atexit.register(_cores.end)
    return True


def waiting() -> tuple[int, int] | None:
    """(ran, waited for a CPU) so far by all threads of this process together, in ns; None where nobody counts it."""
    ran = waited = 0
    try:
        for task in _TASKS.iterdir():
            try:
                numbers = (task / "schedstat").read_text().split()
            except FileNotFoundError:  # it has ended since
                if not (_TASKS / str(os.getpid()) / "schedstat").exists():
                    return None
                continue
            ran, waited = ran + int(numbers[0]), waited + int(numbers[1])
    except (OSError, ValueError, IndexError):
        return None
    return ran, waited


def _is_libgomp() -> bool:
    try:
        return "libgomp" in Path("/proc/self/maps").read_text()
    except OSError:
        return False


class SharedCores:
    """Watches how long this process's threads wait for CPUs, and holds a second OpenMP team while that is long."""

    def __init__(self, interval: float = INTERVAL):
        self.interval = interval
        self.busy = False
        self._ended = threading.Event()
        self._team: SleepingTeam | None = None
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="share-cores")
        self._watcher.start()

    def respond(self, share: float) -> None:
        """Act on the share of its time, from 0 to 1, that the process waited for a CPU."""
        self.busy = share > (IDLE if self.busy else BUSY)
        if self.busy and self._team is None:
            self._team = SleepingTeam()
        elif not self.busy and self._team is not None:
            self._team.end()
            self._team = None

    def end(self) -> None:
        """Stop watching, and leave OpenMP as it was."""
        self._ended.set()
        self._watcher.join()
        self.respond(0.0)

    def _watch(self) -> None:
        _take_no_signals()
        before = waiting()
        while not self._ended.wait(self.interval) and before is not None:
            now = waiting()
            if now is None:
                return
            ran, waited = now[0] - before[0], now[1] - before[1]
            if min(ran, waited) >= 0:  # a thread that has ended takes its count with it
                self.respond(waited / max(ran + waited, 1))
            before = now


class SleepingTeam:
    """A thread with an OpenMP team of its own, which sleeps until :meth:`end`."""

    def __init__(self):
        self._wanted = threading.Event()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._hold, args=(ready,), daemon=True, name="sleeping-team")
        self._thread.start()
        ready.wait()

    def end(self) -> None:
        """Give the team up; OpenMP ends its threads with the one that made them."""
        self._wanted.set()
        self._thread.join()

    def _hold(self, ready: threading.Event) -> None:
        _take_no_signals()
        torch.zeros(2**20).add_(1)  # large enough for torch to share it out
        ready.set()
        self._wanted.wait()


def _take_no_signals() -> None:
    """They are the main thread's, whose handlers have a stack of their own (``signal_stack.py``)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
