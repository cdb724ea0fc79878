"""Settings of a process that runs on the CPU: bounded memory, and threads that leave the cores to other programs.

**Memory.** oneDNN caches every convolution it has generated code for, with its scratch memory, up to 1,024 of them. A
speech batch is as long as its longest utterance, so nearly every batch brings new ones: gigabytes, for a student of a
million parameters. glibc maps each block above its threshold (32 MiB at most) and unmaps it when it is freed. The
activations of a training step are such blocks, hundreds of them a step, and the system zeroes each of their pages every
time. What that costs: benchmarks/README.md, "The whole step".

**Threads.** A training step on the CPU is thousands of short parallel regions. libgomp's threads wait for each other
and for the next region by spinning for milliseconds, which is fastest where every thread has a core to itself. On a
shared machine it uses up the time slices that the late threads need: a run then takes several times its fair share of
time (figures: benchmarks/README.md, "A busy machine"). Never to spin (``OMP_WAIT_POLICY=PASSIVE``) costs every run on
an idle machine. libgomp reads its environment before any plugin is loaded. But it also spins 100 times only, instead of
300,000, while it manages more threads than there are CPUs (its manual, ``GOMP_SPINCOUNT``). So while this process's
threads wait for CPUs, one more thread keeps an OpenMP team of its own, asleep, which never gets any work.
"""

import atexit
import ctypes
import os
import signal
import threading
from pathlib import Path

import torch

from fairseq_star.runtime.job import num_cores

# Parameters of mallopt(3), from glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
STEP = 64 * 2**20  # bytes by which the heap grows
PRIMITIVES = 8
"""Convolutions in oneDNN's cache; making one again costs little next to running it on seconds of audio."""

BUSY, IDLE = 0.10, 0.04
"""Share of the time its threads want to run in which the process waits for a CPU: above the first the machine counts as
busy, below the second no longer."""
INTERVAL = 1.0  # s
_TASKS = Path("/proc/self/task")

_cores: "SharedCores | None" = None


def settle_on_host(*, keep_memory: bool = False) -> None:
    """Apply the settings to this whole process, where a run or a long command starts.

    Where there is a GPU only the number of threads is set.

    Args:
        keep_memory: also :func:`keep_freed_memory`, which pays in training.
    """
    use_own_cores()
    if torch.cuda.is_available():
        return
    bound_primitive_cache()
    share_cores()
    if keep_memory:
        keep_freed_memory()


def use_own_cores() -> None:
    """Limit torch's threads to the cores that the job may use, unless the environment sets their number.

    torch starts a thread for each core that the process may run on, and knows no quota of a container: the threads
    above it are then stopped in the middle of each parallel region, and the others wait for them.
    """
    if "OMP_NUM_THREADS" not in os.environ and (cores := num_cores()) < torch.get_num_threads():
        torch.set_num_threads(cores)


def bound_primitive_cache() -> None:
    """Limit oneDNN's cache to :data:`PRIMITIVES` primitives, unless the environment already sets its capacity.

    oneDNN reads its environment when it makes the first one, so this belongs before the first convolution.
    """
    if "DNNL_PRIMITIVE_CACHE_CAPACITY" not in os.environ:  # its former name
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRIMITIVES))


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for its later allocations; its resident memory stays at its peak.

    Returns:
        False, and nothing changed, where malloc isn't glibc's or the environment already configures it
        (``MALLOC_..._``, ``GLIBC_TUNABLES``).
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # TypeError: Windows has no handle of the program itself
        return False
    # Never trimmed (-1), and no block mapped on its own, whose end would be its page's.
    return all(mallopt(*setting) == 1 for setting in ((M_TRIM_THRESHOLD, -1), (M_TOP_PAD, STEP), (M_MMAP_MAX, 0)))


def share_cores() -> bool:
    """From now on, make OpenMP's threads of this process wait asleep while other programs want its CPUs.

    Results do not change: as many threads as before do the same work.

    Returns:
        False, and nothing changed, where OpenMP isn't GNU's, has one thread, or the environment already sets how it
        waits (``OMP_WAIT_POLICY``, ``GOMP_SPINCOUNT``), or the system does not count waiting times (Linux does).
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
    """Return (ran, waited for a CPU) so far by all threads of this process, in ns; None where nothing counts it."""
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
    """A watch on how long this process's threads wait for CPUs, with a second OpenMP team while that is long."""

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
        self._done = threading.Event()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._sleep, args=(ready,), daemon=True, name="sleeping-team")
        self._thread.start()
        ready.wait()

    def end(self) -> None:
        """End the team; OpenMP ends its threads with the one that made them."""
        self._done.set()
        self._thread.join()

    def _sleep(self, ready: threading.Event) -> None:
        _take_no_signals()
        torch.zeros(2**20).add_(1)  # large enough for torch to run it on all threads
        ready.set()
        self._done.wait()


def _take_no_signals() -> None:
    """Leave them to the main thread, whose handlers have a stack of their own (``signals.py``)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
