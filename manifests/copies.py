"""16 kHz copies of audio files: names, and checks that a copy is up to date.

A copy's name depends on the path of its source (``fairseq_star.audio.utterances.copy_name``). Its FLAC comment has the
whole path, and the source's size, times and digest when the copy was made. A time alone would not be enough: ``mv`` and
``cp -p`` can replace a file by an older one.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from fairseq_star.audio.file import probe_audio
from fairseq_star.audio.utterances import copy_name, place_of
from fairseq_star.errors import StarError
from fairseq_star.manifest import parse_archive_entry


class Source(NamedTuple):
    """Present state of a file or an archive's entry."""

    place: str  # absolute path; of an entry, the archive's path joined with the entry's name
    size: int  # bytes of the file or archive
    times: list[int]  # of its content and of its entry in the folder (ctime), in ns
    path: str  # to open

    @classmethod
    def look(cls, path: str, name: str) -> "Source":
        """Return the source at ``path``; raise StarError if there is no such file."""
        path = place_of(path)
        entry = parse_archive_entry(path)
        place = os.path.join(entry.archive, name.lstrip("/")) if entry else path
        try:
            found = os.stat(entry.archive if entry else path)
        except OSError as error:
            raise _unreadable(path, error) from error
        return cls(place, found.st_size, [found.st_mtime_ns, found.st_ctime_ns], path)

    def digest(self) -> str:
        """Return the SHA-256 of the file, or of the entry alone; raise StarError if it cannot be read."""
        entry = parse_archive_entry(self.path)
        try:
            with open(entry.archive if entry else self.path, "rb") as file:
                if entry is None:
                    return hashlib.file_digest(file, "sha256").hexdigest()
                file.seek(entry.offset)
                return hashlib.sha256(file.read(entry.size)).hexdigest()
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def comment(self) -> str:
        """Return the copy's comment: plain ASCII, even for a name that is not UTF-8."""
        return json.dumps({"source": self.place, "size": self.size, "times": self.times, "sha256": self.digest()})


def _unreadable(path: str, error: OSError) -> StarError:
    return StarError(f"{path}: cannot be read ({error.strerror}); correct the path or restore the file")


def copy_path(folder: Path, source: Source, name: str) -> Path:
    """Return the path of a source's copy: below ``folder`` as ``name`` is below the source's root, never outside."""
    parts = [part for part in Path(name).parts if part != ".." and part.strip("/")] or ["audio"]
    return Path(os.path.abspath(folder)).joinpath(*parts[:-1], copy_name(parts[-1], source.path))


def recorded(copy: str | os.PathLike) -> dict:
    """Return a copy's record of its source; empty if there is no copy or no record."""
    import soundfile

    try:
        with soundfile.SoundFile(copy) as audio:
            told = json.loads(audio.comment)
    except (soundfile.SoundFileError, OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def copied_samples(copy: Path, source: Source) -> int | None:
    """Return the length of a copy that is up to date with its source, else None.

    If only a time differs, as after a ``chmod`` or on another machine, the content decides.
    """
    told = recorded(copy)
    if (told.get("source"), told.get("size")) != (source.place, source.size):
        return None
    if told.get("times") != source.times and told.get("sha256") != source.digest():
        return None
    try:
        return probe_audio(copy, read_end=False)
    except StarError:
        return None
