"""A lock on ``checkpoint.save_dir``, one run a folder, released when its process ends.

A POSIX record lock (``fcntl.lockf``): the system drops it however the process ends, so that none is ever stale, and
forked data workers do not inherit it. It holds across hosts on NFS; where a file system has no locks (Lustre without
``-o flock``, some FUSE mounts) that is logged and the run goes on unprotected.
"""

import errno
import fcntl
import logging
import os
import socket
import struct
import time
from typing import IO

from fairseq_star.errors import StarError

logger = logging.getLogger(__name__)
FILE = ".run.lock"
_held: dict[str, IO[str]] = {}  # real path of a folder -> its open lock file, for the rest of the process


def lock_run_folder(save_dir: str) -> None:
    """Take the lock of a run's folder for the rest of this process; a second call for the same folder does nothing.

    Raises:
        StarError: another process has it; the message names that process.
    """
    folder = os.path.realpath(save_dir)
    if folder in _held:
        return
    os.makedirs(folder, exist_ok=True)
    file = open(os.path.join(folder, FILE), "a+", encoding="utf-8")  # noqa: SIM115 (open until the process ends)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        owner = file.read(200).strip()
        file.close()
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise StarError(
                f"checkpoint.save_dir={save_dir}: another run is training in this folder ({owner or 'just started'}); "
                "name another checkpoint.save_dir, or wait until that run has ended"
            ) from error
        logger.warning(f"{folder}: its file system has no locks ({error}); nothing keeps a second run out of it")
        return
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.flush()
    _held[folder] = file


def is_locked(save_dir: str | os.PathLike) -> bool:
    """Return whether a process of this machine, or over NFS of another, holds the lock of a run's folder now.

    The lock is looked at and not taken, so that a run which starts at this moment is not turned away.
    """
    try:
        with open(os.path.join(save_dir, FILE), "rb") as file:
            flock = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # Linux's `struct flock`
            return struct.unpack("hhqqi0q", fcntl.fcntl(file, fcntl.F_GETLK, flock))[0] != fcntl.F_UNLCK
    except OSError:
        return False
