"""Entries of manifests in bounded memory: seventeen bytes each, the rest in a temporary file."""

import hashlib
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from fairseq_star.manifest import ManifestEntry


class Spool:
    """Entries in order of arrival, with only hashes in memory; the file has no name and is created with the first one.

    Args:
        folder: of the temporary file; created if missing.
        seed: of the ranks by which entries are held out.
    """

    def __init__(self, folder: Path, seed: int = 0):
        self.folder, self.seed = folder, seed
        self.ranks = array("Q")  # depend on seed and path, not on order, machine and other files
        self.places = array("Q")  # equal for equal files
        self.groups = array("B")  # indices of `splits`
        self.splits: dict[tuple[str, ...], int] = {}
        self.file: TextIO | None = None
        self.kept = np.zeros(0, dtype=bool)  # True for the first entry of its path

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        if self.file:
            self.file.close()

    def __len__(self) -> int:
        return len(self.ranks)

    def add(self, entry: ManifestEntry, listed: str, place: str, splits: tuple[str, ...] = ()) -> None:
        """Add an entry.

        Args:
            entry: path and length.
            listed: path that decides whether the entry is held out, also for a copy.
            place: absolute path; only the first entry of a path is kept.
            splits: its manifests.
        """
        if self.file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file = tempfile.TemporaryFile(  # noqa: SIM115
                "w+", encoding="utf-8", newline="\n", dir=self.folder
            )
        self.file.write(f"{entry.path}\t{entry.num_samples}\n")
        self.ranks.append(_rank(listed, self.seed))
        self.places.append(_rank(place, self.seed))
        self.groups.append(self.splits.setdefault(splits, len(self.splits)))

    def forget_repeated(self) -> Iterator[str]:
        """Keep only the first of equal places; yield the others' paths."""
        places = np.frombuffer(self.places, dtype=np.uint64)
        self.kept = np.zeros(len(places), dtype=bool)
        self.kept[np.unique(places, return_index=True)[1]] = True
        if not self.kept.all():
            yield from (entry.path for entry in self.entries(~self.kept))

    def choose(self, percent: float) -> np.ndarray:
        """Return a mask of kept entries to hold out: those of the lowest ranks, so that a new file moves few others."""
        ranks = np.frombuffer(self.ranks, dtype=np.uint64)
        count = _num_held_out(int(self.kept.sum()), percent)
        if not count:
            return np.zeros(len(ranks), dtype=bool)
        return self.kept & (ranks <= np.partition(ranks[self.kept], count - 1)[count - 1])

    def of_split(self, name: str) -> np.ndarray:
        """Return a mask of the kept entries of the manifest ``name``."""
        wanted = [group for splits, group in self.splits.items() if name in splits]
        return self.kept & np.isin(np.frombuffer(self.groups, dtype=np.uint8), wanted)

    def entries(self, chosen: np.ndarray) -> Iterator[ManifestEntry]:
        """Yield the chosen entries, in order of arrival."""
        if self.file is None:
            return
        self.file.seek(0)
        for line, wanted in zip(self.file, chosen, strict=True):
            if wanted:
                path, num_samples = line.rstrip("\n").split("\t")
                yield ManifestEntry(path, int(num_samples))


def _rank(path: str, seed: int) -> int:
    """Return a number from 0 to below 2**64 that depends on seed and path alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{path}".encode()).digest()[:8], "big")


def _num_held_out(num_files: int, percent: float) -> int:
    """Return the number of files to hold out: of two or more, at least one on either side."""
    return 0 if percent == 0 else min(max(1, round(num_files * percent / 100)), num_files - 1)
