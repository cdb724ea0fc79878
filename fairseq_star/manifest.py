"""fairseq's audio manifest, ``{split}.tsv``: the root folder on line 1, then ``path<TAB>num_samples`` a line.

Everything here that reads or writes a manifest goes through this file. The format is the one that fairseq's
``FileAudioDataset`` and ``load_audio`` read (fairseq/data/audio/raw_audio_dataset.py, hubert_dataset.py), archive
entries ``file.zip:offset:length`` included. It imports neither fairseq nor torch: it runs before anything heavy does.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from fairseq_star.errors import StarError
from fairseq_star.runtime.files import open_text, replacing

SAMPLE_RATE = 16_000
"""Hz; the rate that HuBERT and every student here expect."""

_ARCHIVE_ENTRY = re.compile(r"(?P<archive>[^:]+\.zip):(?P<offset>\d+):(?P<size>\d+)")


class ManifestEntry(NamedTuple):
    """One line of a manifest: a path below the root (or an archive entry) and its length in samples."""

    path: str
    num_samples: int


class ArchiveEntry(NamedTuple):
    """An uncompressed entry of a zip archive, which fairseq reads in place."""

    archive: str
    offset: int  # bytes
    size: int  # bytes


def parse_archive_entry(path: str) -> ArchiveEntry | None:
    """Parse ``file.zip:offset:size``; return None for any other path."""
    match = _ARCHIVE_ENTRY.fullmatch(path)
    return match and ArchiveEntry(match["archive"], int(match["offset"]), int(match["size"]))


def read_manifest(path: str | os.PathLike) -> tuple[str, list[ManifestEntry]]:
    """Read a whole manifest.

    Returns:
        The root folder as written on line 1, and the entries in file order.

    Raises:
        StarError: the file is missing or no UTF-8 text, has no root line or no entries, or a line is not
            ``path<TAB>num_samples`` with a positive whole number; the sentence begins ``file:line:``.
    """
    root, entries = stream_manifest(path)
    return root, list(entries)


def stream_manifest(path: str | os.PathLike) -> tuple[str, Iterator[ManifestEntry]]:
    """Read a manifest lazily: the entries are read, and checked, as the iterator is used.

    Raises:
        StarError: line 1 is no folder, at once; otherwise as ``read_manifest``, while the iterator is used.
    """
    path = Path(path)
    lines = _read_lines(path)
    root = next(lines, "").strip()
    if not root or "\t" in root:
        raise StarError(f"{path}:1: expected the root folder of the audio, found {root!r}; put it on the first line")
    return root, _parse_lines(path, lines)


def _read_lines(path: Path) -> Iterator[str]:
    try:
        # Not str.splitlines, which also breaks lines at characters that fairseq takes for part of a name.
        # Editors and spreadsheets put a byte order mark first, which is not part of the root.
        with open_text(path) as file:
            for line in file:
                yield line.rstrip("\n")
    except OSError as error:
        raise StarError(
            f"{path}: cannot read the manifest ({error.strerror}); write one with manifests/librispeech.py"
            " or manifests/audio_folder.py, or correct task.data and the subset's name"
        ) from error
    except UnicodeDecodeError as error:
        raise StarError(f"{path}: is not UTF-8 text, so no manifest; write it again with manifests/*.py") from error


def _parse_lines(path: Path, lines: Iterable[str]) -> Iterator[ManifestEntry]:
    number = 1
    for number, line in enumerate(lines, start=2):
        items = line.strip().split("\t")
        # str.isdecimal refuses signs, blanks, underscores and decimal points, all of which int() or float() would take.
        if len(items) != 2 or not items[0] or not items[1].isdecimal():
            raise StarError(
                f"{path}:{number}: expected 'path<TAB>num_samples', found {line!r}; correct or delete that line"
            )
        if int(items[1]) == 0:
            raise StarError(f"{path}:{number}: num_samples of {items[0]!r} is 0, must be positive; delete that line")
        yield ManifestEntry(items[0], int(items[1]))
    if number == 1:
        raise StarError(f"{path}: has a root line but no entries; write it again from a folder that contains audio")


def write_manifest(path: str | os.PathLike, root: str | os.PathLike, entries: Iterable[ManifestEntry]) -> None:
    """Write a manifest atomically (a temporary file, then a rename): a reader never sees half of one.

    ``entries`` may be an iterator; they are written one by one.

    Raises:
        StarError: no entries, a size that is not positive, or a root or path that the format cannot express (a tab, a
            line break, or blanks at an end, which fairseq strips off).
    """
    root = os.fspath(root)

    def check(name: str) -> None:
        if fault := why_not_listable(name):
            raise StarError(f"{path}: {fault}")

    def lines() -> Iterator[str]:
        yield root + "\n"
        empty = True
        for entry_path, num_samples in entries:
            check(entry_path)
            if num_samples <= 0:
                raise StarError(
                    f"{path}: num_samples of {entry_path!r} is {num_samples}, must be positive; leave that file out"
                )
            yield f"{entry_path}\t{num_samples}\n"
            empty = False
        if empty:
            raise StarError(f"{path}: no audio to list, the manifest would be empty; check the folder and --ext")

    check(root)
    write_lines(path, lines())


def write_lines(path: str | os.PathLike, lines: Iterable[str]) -> None:
    """Write UTF-8 text atomically from lines that end in their line break; make the folder where there is none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)


def why_not_listable(name: str) -> str | None:
    """Return the rest of a sentence on why no manifest can list this path and what to do, or None where one can."""
    if not name or name != name.strip() or re.search(r"[\t\n\r\0]", name):
        return f"no manifest can list the path {name!r} (tab, line break, NUL, outer blank); rename it"
    # Names in some other encoding: Python represents their bytes as lone surrogates.
    if any("\ud800" <= character <= "\udfff" for character in name):
        return f"the name {name!r} is not UTF-8, which manifests are written in; rename that file"
    return None
