"""fairseq's audio manifest, ``{split}.tsv``: the root folder on line 1, then ``path<TAB>num_samples`` a line.

The one owner of the format: everything here that reads or writes a manifest goes through this file. The format is the
one fairseq's ``FileAudioDataset`` and ``load_audio`` read (fairseq/data/audio/raw_audio_dataset.py, hubert_dataset.py),
archive entries ``file.zip:offset:length`` included. No fairseq and no torch in it: it runs before anything heavy does.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from fairseq_star.errors import StarError
from fairseq_star.files import replacing

SAMPLE_RATE = 16_000
"""Hz; what HuBERT and every student here expect."""

_ARCHIVE_ENTRY = re.compile(r"(?P<archive>[^:]+\.zip):(?P<offset>\d+):(?P<size>\d+)")


class ManifestEntry(NamedTuple):
    """One line of a manifest: a path below the root (or an archive entry) and its length in samples."""

    path: str
    num_samples: int


class ArchiveEntry(NamedTuple):
    """A stored entry of a zip archive, which fairseq reads where it lies."""

    archive: str
    offset: int  # bytes
    size: int  # bytes


def parse_archive_entry(path: str) -> ArchiveEntry | None:
    """What ``file.zip:offset:size`` names; None for any other path."""
    match = _ARCHIVE_ENTRY.fullmatch(path)
    return match and ArchiveEntry(match["archive"], int(match["offset"]), int(match["size"]))


def read_manifest(path: str | os.PathLike) -> tuple[str, list[ManifestEntry]]:
    """Reads a manifest whole.

    Returns:
        The root folder as written on line 1, and the entries in file order.

    Raises:
        StarError: the file is missing or no UTF-8 text, has no root line or no entries, or a line is not
            ``path<TAB>num_samples`` with a positive whole number; the sentence begins ``file:line:``.
    """
    root, entries = stream_manifest(path)
    return root, list(entries)


def stream_manifest(path: str | os.PathLike) -> tuple[str, Iterator[ManifestEntry]]:
    """``read_manifest`` without holding the entries: they are read, and refused, as the iterator is used.

    Raises:
        StarError: line 1 is no folder, now; as ``read_manifest``, while the iterator is used.
    """
    path = Path(path)
    lines = _read_lines(path)
    root = next(lines, "").strip()
    if not root or "\t" in root:
        raise StarError(f"{path}:1: expected the root folder of the audio, found {root!r}; put it on the first line")
    return root, _parse_lines(path, lines)


def _read_lines(path: Path) -> Iterator[str]:
    try:
        # Not str.splitlines, which also breaks lines at signs that fairseq takes for part of a name.
        # Editors and spreadsheets put a byte order mark first, which is no part of the root.
        with open(path, encoding="utf-8-sig") as file:
            for line in file:
                yield line.rstrip("\n")
    except OSError as error:
        raise StarError(
            f"{path}: cannot read the manifest ({error.strerror}); write one with manifests/librispeech.py"
            " or manifests/audio_folder.py, or correct task.data and the subset's name"
        ) from error
    except UnicodeDecodeError as error:
        raise StarError(f"{path}: is not UTF-8 text, so no manifest; write it anew with manifests/*.py") from error


def _parse_lines(path: Path, lines: Iterable[str]) -> Iterator[ManifestEntry]:
    number = 1
    for number, line in enumerate(lines, start=2):
        yield _parse_line(path, number, line)
    if number == 1:
        raise StarError(f"{path}: has a root line but no entries; write it anew from a folder that holds audio")


def _parse_line(path: Path, number: int, line: str) -> ManifestEntry:
    items = line.strip().split("\t")
    # str.isdecimal refuses signs, blanks, underscores and decimal points, all of which int() or a float would let by.
    if len(items) != 2 or not items[0] or not items[1].isdecimal():
        raise StarError(f"{path}:{number}: expected 'path<TAB>num_samples', found {line!r}; mend or delete that line")
    if int(items[1]) == 0:
        raise StarError(f"{path}:{number}: num_samples of {items[0]!r} is 0, must be positive; delete that line")
    return ManifestEntry(items[0], int(items[1]))


def write_manifest(path: str | os.PathLike, root: str | os.PathLike, entries: Iterable[ManifestEntry]) -> None:
    """Writes a manifest atomically (a temporary file beside it, then a rename): a reader never sees half of one.

    ``entries`` may be an iterator: none is held.

    Raises:
        StarError: no entries, a size that is not positive, or a root or path the format cannot hold (a tab, a line
            break, or blanks at an end, which fairseq strips off).
    """
    path, root = Path(path), os.fspath(root)
    _check_name(path, root)

    def lines() -> Iterator[str]:
        yield root + "\n"
        empty = True
        for entry_path, num_samples in entries:
            _check_name(path, entry_path)
            if num_samples <= 0:
                raise StarError(
                    f"{path}: num_samples of {entry_path!r} is {num_samples}, must be positive; leave that file out"
                )
            yield f"{entry_path}\t{num_samples}\n"
            empty = False
        if empty:
            raise StarError(f"{path}: no audio to list, the manifest would be empty; check the folder and --ext")

    write_lines(path, lines())


def write_lines(path: str | os.PathLike, lines: Iterable[str]) -> None:
    """Writes UTF-8 text atomically from lines that end in their line break; makes the folder where there is none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)


def _check_name(manifest: Path, name: str) -> None:
    fault = why_not_listable(name)
    if fault:
        raise StarError(f"{manifest}: {fault}")


def why_not_listable(name: str) -> str | None:
    """Why no manifest can hold this path, as the rest of a sentence with the mend, or None where it can."""
    if not name or name != name.strip() or re.search(r"[\t\n\r\0]", name):
        return f"no manifest can hold the path {name!r} (tab, line break, NUL, outer blank); rename it"
    if not _is_unicode(name):
        return f"the name {name!r} is not UTF-8, which manifests are written in; rename that file"
    return None


def _is_unicode(text: str) -> bool:
    """False for the names a file system holds in some other encoding: Python hands them over as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
