"""Files of users: pipes read like files, and atomic writes.

A file or folder is written under a temporary name and moved into place when it is complete.
"""

import functools
import io
import os
import shutil
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, TextIO

from fairseq_star.errors import StarError


def is_pipe(path: str | os.PathLike) -> bool:
    """Return whether a path names a pipe: a FIFO, a shell's process substitution, ``/dev/stdin`` behind ``|``."""
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def open_text(path: str | os.PathLike, newline: str | None = None) -> TextIO:
    """Open UTF-8 text, with or without a byte order mark; that of a pipe can be opened again too.

    Raises:
        OSError: it cannot be read.
    """
    if is_pipe(path):
        return io.TextIOWrapper(io.BytesIO(_read_pipe(os.fspath(path))), encoding="utf-8-sig", newline=newline)
    return open(path, encoding="utf-8-sig", newline=newline)


@functools.cache
def _read_pipe(path: str) -> bytes:
    with open(path, "rb") as pipe:
        return pipe.read()


@contextmanager
def replacing(
    path: str | os.PathLike, *, temporary: str | os.PathLike | None = None, sync: bool = False
) -> Iterator[Path]:
    """Yield a temporary path in the same folder to write a file at; at the end the file replaces ``path``.

    Whatever ends the block early, Ctrl-C too, leaves nothing behind and an old file untouched.

    Args:
        path: the file; its folder must exist.
        temporary: where it is written; a hidden file of a unique name, readable by everybody, when None.
        sync: wait until its bytes are on the disk first, or a power cut leaves the name of an empty file.

    Raises:
        OSError: it cannot be written there.
    """
    path = Path(path)
    if temporary is None:
        handle, temporary = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
        os.close(handle)
        os.chmod(temporary, 0o644)  # mkstemp makes 0600: a shared data folder must stay readable
    temporary = Path(temporary)
    try:
        yield temporary
        if sync:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_output(
    out: Path, *, what: str, is_folder: bool = False, force: bool = False, origin: str = ""
) -> Iterator[Path]:
    """Yield a path to write at, in a hidden temporary folder next to ``out``; at the end it is moved to ``out``.

    Whatever ends the block early, Ctrl-C too, leaves nothing behind and an old ``out`` untouched.

    Args:
        what: what is written, for messages.
        is_folder: whether it is a folder.
        force: replace an existing ``out``; a folder only if every file of it is written anew.
        origin: a file that must not be replaced: the one being converted.

    Raises:
        StarError: ``out`` exists already or cannot be written.
    """
    _check_free(out, what, is_folder, force, origin)
    try:
        temporary = tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise StarError(f"--out {out}: cannot write in {out.parent} ({error.strerror}); give another place") from error
    with temporary as folder:
        written = Path(folder) / out.name
        yield written
        if [entry.name for entry in Path(folder).iterdir()] != [out.name]:
            raise StarError(f"--out {out}: the {what} did not come out as the one {out.name} it should be")
        _move(written, out, Path(folder))


def _check_free(out: Path, what: str, is_folder: bool, force: bool, origin: str) -> None:
    if not out.name:
        raise StarError(f"--out {out} names no file; give one, such as {out / 'student.pt'}")
    if not out.parent.is_dir():
        raise StarError(f"--out {out}: the folder {out.parent} does not exist; make it first")
    if not os.path.lexists(out):
        return
    if not force:
        raise StarError(f"--out {out} exists already; give another name, or --force to replace it")
    if out.exists() and os.path.exists(origin) and os.path.samefile(out, origin):
        raise StarError(f"--out {out} is the very file that is converted; give another name")
    if out.is_dir() != is_folder:
        kind = ("file", "folder") if is_folder else ("folder", "file")
        raise StarError(f"--out {out} is a {kind[0]}, but a {what} is a {kind[1]}; give another name")


def _move(written: Path, out: Path, folder: Path) -> None:
    """Move ``written`` to ``out``; an old folder, which the system cannot replace at once, is moved aside first."""
    if not out.is_dir():
        os.replace(written, out)
        return
    foreign = sorted({entry.name for entry in out.iterdir()} - {entry.name for entry in written.iterdir()})
    if foreign:
        raise StarError(f"--out {out} also contains {foreign[0]!a}, which would be lost; give another name")
    aside = folder / ".old"
    os.replace(out, aside)
    try:
        os.replace(written, out)
    except BaseException:
        os.replace(aside, out)
        raise
    shutil.rmtree(aside)
