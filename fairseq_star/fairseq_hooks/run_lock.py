"""One run in one folder: ``checkpoint.save_dir`` is locked until the process ends (``runtime/folder_lock.py``)."""

import os

from fairseq_star.errors import StarError
from fairseq_star.runtime.folder_lock import HeldError, is_locked_here, is_locked_now, lock_folder

FILE = ".run.lock"


def lock_run_folder(save_dir: str) -> None:
    """Take the lock of a run's folder for the rest of this process; a second call for the same folder does nothing.

    Raises:
        StarError: another process has it; the message names that process.
    """
    if is_locked_here(save_dir, FILE):
        return
    try:
        lock_folder(save_dir, FILE)
    except HeldError as error:
        raise StarError(
            f"checkpoint.save_dir={save_dir}: another run is training in this folder ({error}); name another "
            "checkpoint.save_dir, or wait until that run has ended"
        ) from error


def is_locked(save_dir: str | os.PathLike) -> bool:
    """Return whether a run is training in this folder."""
    return is_locked_now(save_dir, FILE)
