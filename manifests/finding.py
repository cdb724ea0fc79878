"""Selection of audio files in a folder or an archive, and a summary of those left out in one line."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from fairseq_star.audio.utterances import AUDIO_EXTENSIONS, UNREADABLE_EXTENSIONS
from fairseq_star.errors import StarError

MORE_EXTENSIONS = {"aif", "aifc", "bwf", "mp2", "mpga", "oga", "opus", "snd", "sph", "wave"}
"""Other extensions of formats that soundfile reads: `.sph` is NIST's, in LDC's corpora."""
HEADERLESS = {"raw"}  # has neither rate nor channels
MACOS_NAMES = {"__MACOSX", ".DS_Store", ".AppleDouble", ".Spotlight-V100", ".TemporaryItems", ".Trashes", ".fseventsd"}


def readable_extensions() -> set[str]:
    """Return the extensions that soundfile reads, in lower case and without the dot."""
    import soundfile

    return {name.lower() for name in soundfile.available_formats()} - HEADERLESS | MORE_EXTENSIONS


def is_macos_leftover(path: str) -> bool:
    """Return True for a file that macOS adds: a resource fork (``._NAME``), ``__MACOSX/``, ``.DS_Store`` ..."""
    return any(part in MACOS_NAMES or part.startswith("._") for part in path.split("/"))


class LeftOut:
    """Counts, by reason, of files that look like audio and are not listed. ``str`` of it is one line, or empty."""

    def __init__(self):
        self.macos = self.hidden = self.linked = 0
        self.unreadable: Counter[str] = Counter()  # by extension
        self.unwanted: Counter[str] = Counter()

    def leaves_out(self, path: str, wanted: set[str]) -> bool:
        """Return True, and count the file, if it is left out.

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
            (_counted(self.unwanted), "whose extension is not in --ext"),
            (self.hidden and f"{self.hidden} hidden", "whose name begins with a dot"),
            (self.linked and f"{self.linked} links to folders", "which are listed by another name already"),
            (self.macos and f"{self.macos} macOS leftovers", "delete them: fairseq's own tasks may fail with them"),
        ]
        told = "; ".join(f"{what} ({why})" for what, why in reasons if what)
        return told and f"left out: {told}"


def _counted(extensions: Counter[str]) -> str:
    return ", ".join(f"{count} {extension}" for extension, count in sorted(extensions.items()))


def with_dots(extensions: Iterable[str]) -> set[str]:
    """``flac``, ``.FLAC`` as ``.flac``."""
    return {f".{extension.lower().lstrip('.')}" for extension in extensions}


def check_folder(root: Path) -> None:
    """Raise StarError if ``root`` is no folder."""
    if not root.is_dir():
        raise StarError(f"{root}: is no folder; name the folder that holds the audio")


def find_audio(root: Path, extensions: Iterable[str], left_out: LeftOut) -> Iterator[str | StarError]:
    """Find audio files below a folder, at any depth, by extension (in any case), without names that begin with a dot.

    Linked folders are followed, as fairseq's own wav2vec_manifest.py does, but each folder is listed once: a second
    link to it would train on the same audio twice, or hold out training audio. So circular links end too.

    Yields:
        Paths relative to ``root`` with forward slashes, sorted, and a StarError for each broken link and
        each folder that cannot be listed.

    Raises:
        StarError: ``root`` is no folder, or has no such file.
    """
    check_folder(root)
    wanted = with_dots(extensions)
    listed: set[tuple[int, int]] = set()
    found = False
    for path in _walk(root, "", wanted, left_out, listed):
        found = found or isinstance(path, str)
        yield path
    if not found:
        told = f"{root}: has no file ending in {', '.join(sorted(wanted))}; name another folder or --ext"
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
        # A folder is sorted as its files' paths would be, so that all paths are sorted with one folder in memory.
        with os.scandir(here) as entries:
            found = [(entry.name + "/" * _is_folder(entry), entry.is_symlink()) for entry in entries]
    except OSError as error:
        yield StarError(
            f"{here.rstrip('/')}: cannot be listed ({error.strerror}); correct its permissions, or remove it"
        )
        return
    for name, is_link in sorted(found):
        path = folder + name
        if not name.endswith("/"):
            if is_link and not name.startswith(".") and not os.path.exists(here + name):
                yield StarError(
                    f"{here}{name}: is a link to {os.readlink(here + name)}, which does not exist; correct it"
                )
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
