"""Which files of a folder or an archive are audio to list, and which are left out, told in one line."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from fairseq_star.audio.utterances import AUDIO_EXTENSIONS, UNREADABLE_EXTENSIONS
from fairseq_star.errors import StarError

MORE_EXTENSIONS = {"aif", "aifc", "bwf", "mp2", "mpga", "oga", "opus", "snd", "sph", "wave"}
"""Other names of formats soundfile lists: `.sph` is NIST's, as LDC's corpora have it."""
HEADERLESS = {"raw"}  # says neither its rate nor its channels
MACOS_NAMES = {"__MACOSX", ".DS_Store", ".AppleDouble", ".Spotlight-V100", ".TemporaryItems", ".Trashes", ".fseventsd"}


def readable_extensions() -> set[str]:
    """What soundfile reads, in lower case and without the dot."""
    import soundfile

    return {name.lower() for name in soundfile.available_formats()} - HEADERLESS | MORE_EXTENSIONS


def is_macos_leftover(path: str) -> bool:
    """Whether macOS made this beside a user's files: a resource fork (``._NAME``), ``__MACOSX/``, ``.DS_Store`` ..."""
    return any(part in MACOS_NAMES or part.startswith("._") for part in path.split("/"))


class LeftOut:
    """Counts what looks like audio and is not listed, by reason. ``str`` of it is one line, or empty."""

    def __init__(self):
        self.macos = self.hidden = self.linked = 0
        self.unreadable: Counter[str] = Counter()  # by extension
        self.unwanted: Counter[str] = Counter()

    def leaves_out(self, path: str, wanted: set[str]) -> bool:
        """Whether a file is left out; counts it if so.

        Args:
            path: below the folder that was named, or in the archive.
            wanted: extensions, in lower case and with the dot.
        """
        parts = path.split("/")
        extension = os.path.splitext(parts[-1])[1].lower()
        if is_macos_leftover(path):
            self.macos += 1
        elif extension not in wanted:
            if extension[1:] in AUDIO_EXTENSIONS:
                counter = self.unreadable if extension[1:] in UNREADABLE_EXTENSIONS else self.unwanted
                counter[extension] += 1
        elif any(part.startswith(".") and part not in (".", "..") for part in parts):
            self.hidden += 1
        else:
            return False
        return True

    def __str__(self) -> str:
        reasons = [
            (_counted(self.unreadable), "which soundfile cannot read; convert them, for example with ffmpeg"),
            (_counted(self.unwanted), "whose extension was not asked for"),
            (self.hidden and f"{self.hidden} hidden", "whose name begins with a dot"),
            (self.linked and f"{self.linked} links to folders", "which are listed by another name already"),
            (self.macos and f"{self.macos} macOS leftovers", "delete them: fairseq's own tasks may fail beside them"),
        ]
        told = "; ".join(f"{what} ({why})" for what, why in reasons if what)
        return told and f"left out: {told}"


def _counted(extensions: Counter[str]) -> str:
    return ", ".join(f"{count} {extension}" for extension, count in sorted(extensions.items()))


def with_dots(extensions: Iterable[str]) -> set[str]:
    """``flac``, ``.FLAC`` as ``.flac``."""
    return {f".{extension.lower().lstrip('.')}" for extension in extensions}


def check_folder(root: Path) -> None:
    """Raises StarError where ``root`` is no folder."""
    if not root.is_dir():
        raise StarError(f"{root}: is no folder; name the folder that holds the audio")


def find_audio(root: Path, extensions: Iterable[str], left_out: LeftOut) -> Iterator[str | StarError]:
    """Audio files below a folder, at any depth, by extension (in any case); names that begin with a dot are left out.

    Linked folders are followed, as fairseq's own wav2vec_manifest.py does, but each folder is listed once: a second
    link to it would train on the same audio twice, or hold out what is trained on. So links that lead in a circle end.

    Yields:
        Paths relative to ``root`` with forward slashes, sorted, and a StarError for each link that leads nowhere and
        each folder that cannot be listed.

    Raises:
        StarError: ``root`` is no folder, or holds no such file.
    """
    check_folder(root)
    wanted = with_dots(extensions)
    listed: set[tuple[int, int]] = set()
    found = False
    for path in _walk(root, "", wanted, left_out, listed):
        found = found or isinstance(path, str)
        yield path
    if not found:
        told = f"{root}: holds no file ending in {', '.join(sorted(wanted))}; name another folder or --ext"
        raise StarError(f"{told} ({left_out})" if str(left_out) else told)


def _walk(
    root: Path, folder: str, wanted: set[str], left_out: LeftOut, listed: set[tuple[int, int]]
) -> Iterator[str | StarError]:
    here = os.path.join(root, folder)
    try:
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in listed:
            left_out.linked += 1
            return
        listed.add((status.st_dev, status.st_ino))
        # A folder is sorted as its files' paths would be, so that the whole is sorted though one folder is held.
        with os.scandir(here) as entries:
            found = [(entry.name + "/" * _is_folder(entry), entry.is_symlink()) for entry in entries]
    except OSError as error:
        yield StarError(f"{here.rstrip('/')}: cannot be listed ({error.strerror}); mend its permissions, or remove it")
        return
    for name, is_link in sorted(found):
        path = folder + name
        if not name.endswith("/"):
            if is_link and not name.startswith(".") and not os.path.exists(here + name):
                yield StarError(f"{here}{name}: is a link to {os.readlink(here + name)}, which is not there; mend it")
            elif not left_out.leaves_out(name, wanted):
                yield path
        elif is_macos_leftover(name[:-1]):
            left_out.macos += 1
        elif name.startswith("."):
            left_out.hidden += 1
        else:
            yield from _walk(root, path, wanted, left_out, listed)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
