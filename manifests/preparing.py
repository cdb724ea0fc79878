"""What the manifest scripts share: options, reading headers, holding out, writing manifests, reporting."""

import argparse
import hashlib
import os
import sys
import tempfile
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TextIO

import numpy as np

from fairseq_star.audio.file import probe_all, probe_audio
from fairseq_star.audio.utterances import place_of
from fairseq_star.errors import StarError
from fairseq_star.manifest import SAMPLE_RATE, ManifestEntry, why_not_listable, write_manifest
from fairseq_star.threads import map_in_threads, show_progress
from manifests.finding import LeftOut
from manifests.splits import compare_splits


class Found(NamedTuple):
    """One audio file, as a source names it."""

    path: str  # below the root, or absolute, or `archive.zip:offset:size`
    told_samples: int | None = None  # where the source says its length
    where: str = ""  # 'file:line: ', for sentences about it
    name: str = ""  # what a converted copy is called, where the path does not say


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options every script has: --out, --skip-bad, --headers-only."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the manifests; made if new")
    parser.add_argument(
        "--skip-bad", action="store_true",
        help="end with status 0 though files or lines were left out (unreadable, empty, not mono, not 16 kHz ...)",
    )  # fmt: skip
    parser.add_argument(
        "--headers-only", action="store_true",
        help="do not decode each file's last sample: much quicker, but FLAC and MP3 files cut short go unnoticed",
    )  # fmt: skip


def add_split_options(parser: argparse.ArgumentParser) -> None:
    """--valid-percent, --seed, --name and --resample, the same for every source but LibriSpeech."""
    parser.add_argument(
        "--valid-percent",
        type=float,
        default=None,
        help="of the files, held out as valid.tsv (default 1)",
    )
    parser.add_argument("--seed", type=int, default=0, help="decides which files are held out (default 0)")
    parser.add_argument("--name", default=None, help="write all as NAME.tsv, hold nothing out")
    parser.add_argument(
        "--resample", type=Path, default=None, metavar="DIR",
        help="what is not 16 kHz mono is written there as 16 kHz mono FLAC; what is there already is not done again",
    )  # fmt: skip


def check_split_options(options: argparse.Namespace) -> None:
    """Raises StarError where --valid-percent is out of range or goes with --name."""
    if options.name is not None and (options.valid_percent or not options.name or "/" in options.name):
        raise StarError(f"--name {options.name!r}: must be a plain name, and goes without --valid-percent")
    if options.valid_percent is None:
        options.valid_percent = 0.0 if options.name else 1.0
    if not 0 <= options.valid_percent < 100:
        raise StarError(f"--valid-percent {options.valid_percent}: must be from 0 to below 100; correct it")


def prepare(root: Path, found: Iterable[Found | StarError], options: argparse.Namespace, left_out: LeftOut) -> int:
    """Reads the files' headers in parallel, converts what must be and may be, and writes `train.tsv` and `valid.tsv`
    (or the one named) in the order given. Bad files and lines are named and left out. Whatever their number, only a few
    entries are held: sixteen bytes each, and the rest in a temporary file in the manifests' folder.

    Args:
        root: the folder relative paths are below; its absolute path becomes the manifests' first line.
        found: the files; a StarError stands for a line that cannot be read.
        options: of `add_options` and `add_split_options`; `trust_lengths`, where there, takes told lengths unseen.
        left_out: what was found and is not among `found`, told in the last line.

    Returns:
        The status to exit with: 1 where entries were left out without --skip-bad.

    Raises:
        StarError: no good entry.
    """
    root = Path(os.path.abspath(root))
    converting = options.resample is not None
    results = map_in_threads(
        lambda item: _look_at(root, item, options), found, num_workers=os.cpu_count() if converting else None
    )
    what = "converting" if converting else "reading audio headers"
    num_bad = 0
    with _Spool(options.out, options.seed) as spool:
        with closing(show_progress(results, what)) as shown:
            for item, result in shown:
                if isinstance(result, StarError):
                    tell(result)
                    num_bad += 1
                else:
                    spool.add(result, item.path, place_of(os.path.join(root, item.path)))
        for path in spool.forget_repeated():
            tell(f"{path}: is listed more than once; its first place counts")
            num_bad += 1
        if not len(spool):
            raise StarError(f"no audio to list: all of {num_bad} files or lines are bad; see the first one named above")
        held_out = spool.choose(options.valid_percent)
        written = [options.name or "train"]
        write_split(options.out / f"{written[0]}.tsv", root, spool.entries(spool.kept & ~held_out))
        if held_out.any():
            written.append("valid")
            write_split(options.out / "valid.tsv", root, spool.entries(held_out))
    return report(options.out, written, left_out, num_bad, options.skip_bad)


def _look_at(root: Path, item: Found | StarError, options: argparse.Namespace) -> ManifestEntry:
    """The entry for a file, converted where need be."""
    if isinstance(item, StarError):
        raise item
    try:
        if fault := why_not_listable(item.path):
            raise StarError(fault)
        if getattr(options, "trust_lengths", False):
            if item.told_samples is None:
                raise StarError(f"{item.path}: has no length, which --trust-lengths needs; leave that option out")
            return ManifestEntry(item.path, item.told_samples)
        listed = as_on_disk(root, item.path)
        path = os.path.join(root, listed)
        try:
            num_samples = probe_audio(path, read_end=not options.headers_only, told_samples=item.told_samples)
        except StarError:
            if options.resample is None:
                raise
            from manifests.resampling import convert_into

            return convert_into(options.resample, path, item.name or os.path.relpath(path, root))
        if item.told_samples not in (None, num_samples):
            raise StarError(f"{path}: holds {num_samples} samples, not {item.told_samples}; correct that line")
        return ManifestEntry(listed, num_samples)
    except StarError as error:
        raise StarError(f"{item.where}{error}") from error


def as_on_disk(root: Path, path: str) -> str:
    """The path as the file system writes its accents, where a list has them in the other Unicode form."""
    if path.isascii() or os.path.lexists(os.path.join(root, path)):
        return path
    there = ""
    for part in path.split("/"):
        forms = (part, unicodedata.normalize("NFC", part), unicodedata.normalize("NFD", part))
        there += next((form for form in forms if os.path.lexists(os.path.join(root, there + form))), part) + "/"
    return there[:-1]


class _Spool:
    """Entries of which only hashes are held; the rest is in an unnamed temporary file, made with the first entry."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.seed = folder, seed
        self.ranks = array("Q")  # by seed and path: order, machine and other files change nothing
        self.places = array("Q")  # equal for equal files
        self.file: TextIO | None = None
        self.kept = np.zeros(0, dtype=bool)  # one a place: the first of its path

    def __enter__(self) -> "_Spool":
        return self

    def __exit__(self, *_: object) -> None:
        if self.file:
            self.file.close()

    def __len__(self) -> int:
        return len(self.ranks)

    def add(self, entry: ManifestEntry, listed: str, place: str) -> None:
        """`listed` decides whether the entry is held out, also where it is a copy; of one `place` the first is kept."""
        if self.file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file = tempfile.TemporaryFile(  # noqa: SIM115
                "w+", encoding="utf-8", newline="\n", dir=self.folder
            )
        self.file.write(f"{entry.path}\t{entry.num_samples}\n")
        self.ranks.append(_rank(listed, self.seed))
        self.places.append(_rank(place, self.seed))

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

    def entries(self, chosen: np.ndarray) -> Iterator[ManifestEntry]:
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


def read_lengths(root: Path, paths: Sequence[str], headers_only: bool) -> tuple[dict[str, int], list[StarError]]:
    """Reads all files' lengths in parallel, with a progress bar.

    Returns:
        The good files' numbers of samples by path, in the order given, and what is wrong with each bad file.
    """
    results = probe_all([root / path for path in paths], SAMPLE_RATE, read_end=not headers_only)
    good = {path: result for path, result in zip(paths, results, strict=True) if not isinstance(result, StarError)}
    return good, [result for result in results if isinstance(result, StarError)]


def write_manifests(
    root: Path, out: Path, splits: Mapping[str, Sequence[str]], num_samples: Mapping[str, int],
    problems: Sequence[StarError], skip_bad: bool, left_out: LeftOut,
) -> int:  # fmt: skip
    """Writes one manifest a split, names the bad files and sums up. The manifests hold the good files only, whether or
    not there were bad ones.

    Args:
        root: the folder all paths are below; its absolute path becomes the manifests' first line.
        out: folder for the manifests.
        splits: paths by split; those that are not in `num_samples` are left out.
        num_samples: length of each good file.
        problems: what is wrong with each bad file.
        skip_bad: bad files are no failure.
        left_out: what is not among them, told in the last line.

    Returns:
        The status to exit with: 1 where files were left out without `skip_bad`.

    Raises:
        StarError: a split without one good file.
    """
    for problem in problems:
        tell(problem)
    for split, paths in splits.items():
        entries = (ManifestEntry(path, num_samples[path]) for path in paths if path in num_samples)
        write_split(out / f"{split}.tsv", root, entries)
    return report(out, list(splits), left_out, len(problems), skip_bad)


def write_split(path: Path, root: Path, entries: Iterable[ManifestEntry]) -> None:
    """Writes one manifest and tells its size."""
    num_files = num_samples = 0

    def counted() -> Iterator[ManifestEntry]:
        nonlocal num_files, num_samples
        for entry in entries:
            num_files += 1
            num_samples += entry.num_samples
            yield entry

    write_manifest(path, os.path.abspath(root), counted())
    print(f"{path}: {num_files} files, {num_samples / SAMPLE_RATE / 3600:.2f} h")


def report(out: Path, written: Sequence[str], left_out: LeftOut, num_bad: int, skip_bad: bool) -> int:
    """Tells how many files or lines were left out, and how the manifests written go with others there.

    Returns:
        The status to exit with.
    """
    for told in compare_splits(out, written):
        tell(told)
    if num_bad:
        advice = "" if skip_bad else "; mend them and run this again, or give --skip-bad to go without them"
        tell(f"{num_bad} bad files or lines left out{advice}")
    if str(left_out):
        tell(left_out)
    return 1 if num_bad and not skip_bad else 0


def tell(problem: object) -> None:
    """On stderr, in a line of its own above a progress bar."""
    from tqdm import tqdm

    tqdm.write(str(problem), file=sys.stderr)


def split_by_speaker(paths: Sequence[str], held_out_speakers: Iterable[str]) -> tuple[list[str], list[str]]:
    """(training paths, held-out paths) of LibriSpeech paths, by the speaker's folder."""
    held_out = set(held_out_speakers)
    return (
        [path for path in paths if speaker_of(path) not in held_out],
        [path for path in paths if speaker_of(path) in held_out],
    )


def speaker_of(path: str) -> str:
    """The speaker in `.../<speaker>/<chapter>/<utterance>.flac`."""
    return PurePosixPath(path).parts[-3]


def run_script(main: Callable[[], int | None]) -> None:
    """Runs a script's main and exits with its status; a user's or the system's error is one sentence, status 1."""
    try:
        sys.exit(main())
    except (StarError, OSError) as error:  # a full disk is the user's to mend as well
        print(error, file=sys.stderr)
        sys.exit(1)
