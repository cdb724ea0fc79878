"""What a job may use of its machine: memory, cores and disk, where a container, a scheduler or a quota allows less.

Read from ``/proc`` and the control groups (cgroups, version 1 and 2) with which Docker, Kubernetes, systemd and SLURM
set limits, and from SLURM's variables. A group's limit holds for all groups below it.
"""

import ctypes
import math
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
UNLIMITED = 2**60  # bytes, or more: version 1 writes the largest page-aligned number for "no limit"
USER_QUOTA = 0x80000700  # Linux's QCMD(Q_GETQUOTA, USRQUOTA)


class Free(NamedTuple):
    """Bytes that may still be taken."""

    num_bytes: int
    limit: str  # what sets the limit, for messages


def free_memory() -> Free:
    """Return the memory that this process may still take without being killed, and what limits it."""
    return min(_memory_limits(), key=lambda free: free.num_bytes)


def num_cores() -> int:
    """Return how many cores this process may keep busy, 1 or more."""
    quotas = (quota for folder in _groups("cpu") if (quota := _cpu_quota(folder)) is not None)
    counts = [len(os.sched_getaffinity(0)), *map(math.ceil, quotas)]
    if tasks := _slurm("SLURM_CPUS_PER_TASK"):
        counts.append(tasks)
    return max(1, min(counts))


def free_disk(path: str | os.PathLike) -> int:
    """Return the bytes that this user may still write below an existing folder.

    Quotas of a project or a directory (XFS, ext4) are in the file system's own answer; a user's quota on a local disk
    is asked for. Those of NFS, Lustre and GPFS are not readable in this way.
    """
    free, quota = shutil.disk_usage(path).free, _user_quota(os.fspath(path))
    return free if quota is None else min(free, quota)


def process_bytes(key: str) -> int:
    """Return one memory line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no line {key}")


def _memory_limits() -> Iterator[Free]:
    for line in (PROC / "meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            yield Free(int(line.split()[1]) * 1024, "the machine")
    for folder in _groups("memory"):
        yield from _limits_of_group(folder)
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_space != resource.RLIM_INFINITY:
        yield Free(max(0, address_space - process_bytes("VmSize")), "ulimit -v")
    cores = _slurm("SLURM_CPUS_ON_NODE") or 1
    for name, count in (("SLURM_MEM_PER_NODE", 1), ("SLURM_MEM_PER_CPU", cores)):
        if megabytes := _slurm(name):  # 0: all of the node's
            yield Free(max(0, megabytes * count * 2**20 - process_bytes("VmRSS")), name)


def _limits_of_group(folder: Path) -> Iterator[Free]:
    used = _number(folder / "memory.current")
    names = ("memory.max", "memory.high")
    if used is None:
        used, names = _number(folder / "memory.usage_in_bytes"), ("memory.limit_in_bytes",)
    for name in names:
        limit = _number(folder / name)
        if limit is not None and used is not None and limit < UNLIMITED:
            # Cached files count as used, and go before a process is killed.
            yield Free(max(0, limit - used + _cached_files(folder)), str(folder / name))


def _cached_files(folder: Path) -> int:
    """Return the bytes of files that are cached and that no process has mapped, as it has libraries that it runs."""
    lines = dict(line.split(maxsplit=1) for line in _text(folder / "memory.stat").splitlines() if " " in line)

    def count(*names: str) -> int:
        return next((int(lines[name]) for name in names if name in lines), 0)

    # Version 1 counts the groups below in "total_" alone.
    cached = sum(count(f"total_{kind}_file", f"{kind}_file") for kind in ("active", "inactive"))
    return max(0, cached - count("total_mapped_file", "file_mapped"))


def _cpu_quota(folder: Path) -> float | None:
    """Return the cores' worth of time that a control group may use; None where it sets no limit."""
    numbers = _text(folder / "cpu.max").split()
    if not numbers:
        numbers = [_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    try:
        quota, period = map(int, numbers)
    except ValueError:  # "max", or no such file
        return None
    return quota / period if quota > 0 and period > 0 else None


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups of a controller, its own first, then those above it."""
    of_process = {}
    for line in _text(PROC / "self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        of_process |= dict.fromkeys(names.split(","), path)  # version 2 has the name ""
    for line in _text(PROC / "self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        names = options.split(",") if kind == "cgroup" else [""]
        name = controller if kind == "cgroup" else ""
        if not kind.startswith("cgroup") or name not in names or name not in of_process:
            continue
        root, mounted = (Path(part) for part in before.split()[3:5])
        own = Path(of_process[name])
        # A container may be shown the host's path of its group, of which only the part below the mount exists here.
        folder = mounted / own.relative_to(root) if own.is_relative_to(root) else mounted
        yield from (one for one in (folder, *folder.parents) if one.is_relative_to(mounted))


def _slurm(name: str) -> int:
    """Return a number that SLURM states for this job; 0 where there is no job or no such number."""
    value = os.environ.get(name, "")
    return int(value) if "SLURM_JOB_ID" in os.environ and value.isdecimal() else 0


def _user_quota(path: str) -> int | None:
    """Return what the user's quota on a local file system leaves, bytes; None where there is none."""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = (line.partition(" - ") for line in _text(PROC / "self/mountinfo").splitlines())
    source = next((after.split()[1] for before, _, after in mounts if before.split()[2] == number), "")
    if not source.startswith("/"):
        return None
    quota = (ctypes.c_uint64 * 9)()  # struct dqblk: hard and soft limit in KiB, bytes in use, ...
    quotactl = getattr(ctypes.CDLL(None), "quotactl", None)
    if quotactl is None or quotactl(ctypes.c_int32(USER_QUOTA & 0xFFFFFFFF), source.encode(), os.getuid(), quota):
        return None
    return max(0, quota[0] * 1024 - quota[2]) if quota[0] else None


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
