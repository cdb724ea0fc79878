"""Entries on their way to manifests: seventeen bytes of each are held, and the rest is in a temporary file."""

import hashlib
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from fairseq_star.manifest import ManifestEntry


class Spool:
    """Entries in the order they come, of which only hashes are held; the file has no name and is made with the first.

    Args:
        folder: of the temporary file; made if new.
        seed: of the ranks by which entries are held out.
    """

    def __init__(self, folder: Path, seed: int = 0):
        self.folder, self.seed = folder, seed
        self.ranks = array("Q")  # by seed and path: order, machine and other files change nothing
        self.places = array("Q")  # equal for equal files
        self.groups = array("B")  # of `splits`, whose numbers these are
        self.splits: dict[tuple[str, ...], int] = {}
        self.file: TextIO | None = None
        self.kept = np.zeros(0, dtype=bool)  # one a place: the first of its path

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        if self.file:
            self.file.close()

    def __len__(self) -> int:
        return len(self.ranks)

    def add(self, entry: ManifestEntry, listed: str, place: str, splits: tuple[str, ...] = ()) -> None:
        """Takes an entry.

        Args:
            entry: path and length.
            listed: decides whether the entry is held out, also where it is a copy.
            place: of one place the first is kept.
            splits: the manifests it is for.
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
        """Keeps the first of equal places alone; yields the others' paths."""
        places = np.frombuffer(self.places, dtype=np.uint64)
        self.kept = np.zeros(len(places), dtype=bool)
        self.kept[np.unique(places, return_index=True)[1]] = True
        if not self.kept.all():
            yield from (entry.path for entry in self.entries(~self.kept))

    def choose(self, percent: float) -> np.ndarray:
        """Which of the kept entries to hold out: those of the lowest ranks, so that a file added moves few others."""
        ranks = np.frombuffer(self.ranks, dtype=np.uint64)
        count = _num_held_out(int(self.kept.sum()), percent)
        if not count:
            return np.zeros(len(ranks), dtype=bool)
        return self.kept & (ranks <= np.partition(ranks[self.kept], count - 1)[count - 1])

    def of_split(self, name: str) -> np.ndarray:
        """Which of the kept entries are for the manifest ``name``."""
        wanted = [group for splits, group in self.splits.items() if name in splits]
        return self.kept & np.isin(np.frombuffer(self.groups, dtype=np.uint8), wanted)

    def entries(self, chosen: np.ndarray) -> Iterator[ManifestEntry]:
        """The chosen entries, in the order they came."""
        if self.file is None:
            return
        self.file.seek(0)
        for line, wanted in zip(self.file, chosen, strict=True):
            if wanted:
                path, num_samples = line.rstrip("\n").split("\t")
                yield ManifestEntry(path, int(num_samples))


def _rank(path: str, seed: int) -> int:
    """A number from 0 to below 2**64 that depends on seed and path alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{path}".encode()).digest()[:8], "big")


def _num_held_out(num_files: int, percent: float) -> int:
    """How many of so many files to hold out: at least one on either side where there are two or more."""
    return 0 if percent == 0 else min(max(1, round(num_files * percent / 100)), num_files - 1)
