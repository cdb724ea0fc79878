"""Which 16 kHz copy stands for which source, and whether it still does.

A copy's name says where its source lies (``fairseq_star.audio.utterances.copy_name``). Its FLAC comment says the same
in full, and what the source was when the copy was made: size, times and digest. A time alone would not do: ``mv`` and
``cp -p`` put older files in a newer one's place.
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
    """A file, or an archive's entry, as it is now."""

    place: str  # absolute; an entry's is its archive's and its own name
    size: int  # bytes of the file or archive
    times: list[int]  # of its content and of its entry in the folder (ctime), in ns
    path: str  # as it is opened

    @classmethod
    def look(cls, path: str, name: str) -> "Source":
        """Raises StarError where there is no such file."""
        path = place_of(path)
        entry = parse_archive_entry(path)
        place = os.path.join(entry.archive, name.lstrip("/")) if entry else path
        try:
            found = os.stat(entry.archive if entry else path)
        except OSError as error:
            raise _unreadable(path, error) from error
        return cls(place, found.st_size, [found.st_mtime_ns, found.st_ctime_ns], path)

    def digest(self) -> str:
        """SHA-256 of the file, or of the entry alone. Raises StarError where it cannot be read."""
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
        """What is written into the copy. Plain ASCII, also of a name that is no UTF-8."""
        return json.dumps({"source": self.place, "size": self.size, "times": self.times, "sha256": self.digest()})


def _unreadable(path: str, error: OSError) -> StarError:
    return StarError(f"{path}: cannot be read ({error.strerror}); correct the path or restore the file")


def copy_path(folder: Path, source: Source, name: str) -> Path:
    """Where the copy of a source lies: below ``folder`` as ``name`` is below the source's root, never outside."""
    parts = [part for part in Path(name).parts if part != ".." and part.strip("/")] or ["audio"]
    return Path(os.path.abspath(folder)).joinpath(*parts[:-1], copy_name(parts[-1], source.path))


def recorded(copy: str | os.PathLike) -> dict:
    """What a copy says of its source, empty where it is not there or says nothing."""
    import soundfile

    try:
        with soundfile.SoundFile(copy) as audio:
            told = json.loads(audio.comment)
    except (soundfile.SoundFileError, OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def copied_samples(copy: Path, source: Source) -> int | None:
    """The length of a copy that was made from this very source as it is now, else None.

    Where only a time differs, as after a ``chmod`` or on another machine, the content decides.
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
