"""One process in one folder: a lock that the system drops however the process ends, so that none is ever stale.

A POSIX record lock (``fcntl.lockf``): forked data workers do not inherit it, and it holds across hosts on NFS. A file
system without locks (Lustre without ``-o flock``, some FUSE mounts) is logged. Within one process such a lock excludes
nothing; a table of the folders held does.
"""

import errno
import fcntl
import logging
import os
import socket
import struct
import time
from typing import IO

logger = logging.getLogger(__name__)
_held: dict[str, IO[str]] = {}  # real path of a lock's file -> the open file


class HeldError(Exception):
    """Another process, or another part of this one, holds the lock; the message names that process."""


def lock_folder(folder: str | os.PathLike, file_name: str) -> None:
    """Lock a folder, which is made where there is none, until :func:`unlock_folder` or the end of the process.

    Where the file system has no locks, that is logged and nothing is locked.

    Args:
        file_name: of the lock's file in it.

    Raises:
        HeldError: it is locked.
    """
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(os.path.realpath(folder), file_name)
    if path in _held:  # opening and closing the file would release this process's own lock
        raise HeldError(f"process {os.getpid()}, this one")
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (open as long as the lock holds)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        owner = file.read(200).strip()
        file.close()
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise HeldError(owner or "just started") from error
        logger.warning(f"{folder}: its file system has no locks ({error}); nothing keeps a second run out of it")
        return
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.flush()
    _held[path] = file


def is_locked_here(folder: str | os.PathLike, file_name: str) -> bool:
    """Return whether this process holds the lock of a folder."""
    return os.path.join(os.path.realpath(folder), file_name) in _held


def is_locked_now(folder: str | os.PathLike, file_name: str) -> bool:
    """Return whether a process of this machine, or over NFS of another, holds the lock of a folder.

    The lock is looked at and not taken, so that a process which starts at this moment is not turned away.
    """
    if is_locked_here(folder, file_name):  # opening and closing the file would release it
        return True
    try:
        with open(os.path.join(folder, file_name), "rb") as file:
            flock = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # Linux's `struct flock`
            return struct.unpack("hhqqi0q", fcntl.fcntl(file, fcntl.F_GETLK, flock))[0] != fcntl.F_UNLCK
    except OSError:
        return False


def unlock_folder(folder: str | os.PathLike, file_name: str) -> None:
    """Release a lock of this process; nothing where it holds none."""
    if file := _held.pop(os.path.join(os.path.realpath(folder), file_name), None):
        file.close()
