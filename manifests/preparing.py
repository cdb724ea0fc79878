"""Common parts of the manifest scripts: options, reading headers, holding out, writing manifests, reporting."""

import argparse
import operator
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from fairseq_star.audio.file import probe_audio
from fairseq_star.audio.threads import map_in_threads, show_progress
from fairseq_star.audio.utterances import place_of
from fairseq_star.errors import StarError
from fairseq_star.manifest import SAMPLE_RATE, ManifestEntry, why_not_listable, write_manifest
from fairseq_star.runtime.files import is_pipe
from fairseq_star.runtime.job import num_cores
from manifests.finding import LeftOut
from manifests.splits import compare_splits
from manifests.spool import Spool

RAGGED = 0.1  # seconds by which a stated start or end may miss that of the whole file; 1 % of longer ones


class Part(NamedTuple):
    """A part of a file, in seconds."""

    start: float
    end: float | None  # None: the file's own


class Found(NamedTuple):
    """An audio file in a source."""

    path: str  # below the root, or absolute, or `archive.zip:offset:size`
    told_samples: int | None = None  # if the source states a length
    where: str = ""  # 'file:line: ', for messages
    name: str = ""  # of a converted copy, if it does not follow from the path
    splits: tuple[str, ...] = ()  # its manifests, if the source decides
    part: Part | None = None  # if the source names one, which then must be the whole file


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of all scripts: --out, --skip-bad, --headers-only, --resample."""
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the manifests; created if missing"
    )
    parser.add_argument(
        "--skip-bad", action="store_true",
        help="exit with status 0 though files or lines were left out (unreadable, empty, not mono, not 16 kHz ...)",
    )  # fmt: skip
    parser.add_argument(
        "--headers-only", action="store_true",
        help="do not decode each file's last sample: much faster, but truncated FLAC and MP3 files go unnoticed",
    )  # fmt: skip
    parser.add_argument(
        "--resample", type=Path, default=None, metavar="DIR",
        help="write files that are not 16 kHz mono there as 16 kHz mono FLAC; copies that exist already are reused",
    )  # fmt: skip


def add_split_options(parser: argparse.ArgumentParser) -> None:
    """Add --valid-percent, --seed and --name, common to all sources except LibriSpeech."""
    parser.add_argument(
        "--valid-percent",
        type=float,
        default=None,
        help="percentage of files held out as valid.tsv (default 1)",
    )
    parser.add_argument("--seed", type=int, default=0, help="decides which files are held out (default 0)")
    parser.add_argument("--name", default=None, help="write all as NAME.tsv, hold nothing out")


def check_split_options(options: argparse.Namespace) -> None:
    """Raise StarError if --valid-percent is out of range or combined with --name."""
    if options.name is not None and (options.valid_percent or not options.name or "/" in options.name):
        raise StarError(f"--name {options.name!r}: must be a plain name, without --valid-percent")
    if options.valid_percent is None:
        options.valid_percent = 0.0 if options.name else 1.0
    if not 0 <= options.valid_percent < 100:
        raise StarError(f"--valid-percent {options.valid_percent}: must be from 0 to below 100; correct it")


def check_copies(options: argparse.Namespace) -> None:
    """Raise StarError if --resample would write below the root whose audio is listed."""
    if options.resample and options.resample.resolve().is_relative_to(options.root.resolve()):
        raise StarError(f"--resample {options.resample}: is below {options.root}, whose audio is listed; name another")


def prepare(
    root: Path, found: Iterable[Found | StarError], options: argparse.Namespace, left_out: LeftOut,
    splits: Sequence[str] = (), count: Callable[[Found, int], object] = lambda item, num_samples: None,
) -> int:  # fmt: skip
    """Read the files' headers in parallel, convert with --resample, and write ``train.tsv`` and ``valid.tsv`` (or the
    manifest named, or ``splits``) in the order given. Bad files and lines are named and left out. Memory per entry is a
    few bytes, see ``Spool``; the rest is in a temporary file in the manifests' folder.

    Args:
        root: the folder of relative paths; its absolute path becomes the manifests' first line.
        found: the files; a StarError for each line that cannot be read.
        options: of ``add_options`` and, without ``splits``, ``add_split_options``; ``trust_lengths``, if there,
            uses stated lengths unchecked.
        left_out: files that are not among ``found``, reported in the last line.
        splits: names of the manifests, if each of ``found`` names its own.
        count: called with each good file and its number of samples.

    Returns:
        The exit status: 1 if entries were left out without --skip-bad.

    Raises:
        StarError: no good entry, in all or in one of ``splits``.
    """
    root = Path(os.path.abspath(root))
    converting = options.resample is not None
    results = map_in_threads(
        lambda item: _look_at(root, item, options), found, num_workers=num_cores() if converting else None
    )
    what = "converting" if converting else "reading audio headers"
    num_bad = 0
    with Spool(options.out, getattr(options, "seed", 0)) as spool:
        with closing(show_progress(results, what, operator.length_hint(found) or None)) as shown:
            for item, result in shown:
                if isinstance(result, StarError):
                    warn(result)
                    num_bad += 1
                else:
                    spool.add(result, item.path, place_of(os.path.join(root, item.path)), item.splits)
                    count(item, result.num_samples)
        for path in spool.forget_repeated():
            warn(f"{path}: is listed more than once; the first entry counts")
            num_bad += 1
        if not len(spool):
            raise StarError(f"no audio to list: all of {num_bad} files or lines are bad; see the first one named above")
        chosen = {name: spool.of_split(name) for name in splits} or _hold_out(spool, options)
        for name, entries in chosen.items():
            write_split(options.out / f"{name}.tsv", root, spool.entries(entries))
    return report(options.out, list(chosen), left_out, num_bad, options.skip_bad)


def _hold_out(spool: Spool, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Assign entries to manifests by ``add_split_options``."""
    held_out = spool.choose(options.valid_percent)
    chosen = {options.name or "train": spool.kept & ~held_out}
    return {**chosen, "valid": held_out} if held_out.any() else chosen


def _look_at(root: Path, item: Found | StarError, options: argparse.Namespace) -> ManifestEntry:
    """Return the entry of a file, converted if necessary."""
    if isinstance(item, StarError):
        raise item
    try:
        if fault := why_not_listable(item.path):
            raise StarError(fault)
        if getattr(options, "trust_lengths", False):
            if item.told_samples is None:
                raise StarError(f"{item.path}: has no length, which --trust-lengths needs; leave that option out")
            check_whole(item, item.told_samples)
            return ManifestEntry(item.path, item.told_samples)
        listed = as_on_disk(root, item.path)
        path = os.path.join(root, listed)
        try:
            num_samples = probe_audio(path, read_end=not options.headers_only, stated_samples=item.told_samples)
        except StarError:
            if options.resample is None or is_pipe(path):
                raise
            from manifests.resampling import convert_into

            converted = convert_into(options.resample, path, item.name or os.path.relpath(path, root))
            check_whole(item, converted.num_samples)
            return converted
        check_whole(item, num_samples)
        if item.told_samples not in (None, num_samples):
            raise StarError(f"{path}: has {num_samples} samples, not {item.told_samples}; correct that line")
        return ManifestEntry(listed, num_samples)
    except StarError as error:
        raise StarError(f"{item.where}{error}") from error


def check_whole(item: Found, num_samples: int) -> None:
    """Raise StarError if the source names a part of a file, since a manifest would list the whole."""
    if item.part is None:
        return
    seconds = num_samples / SAMPLE_RATE
    end = seconds if item.part.end is None else item.part.end
    if item.part.start > RAGGED or end < seconds - max(RAGGED, 0.01 * seconds):
        raise StarError(
            f"{item.path}: only {item.part.start:g} to {end:g} s of its {seconds:g} s are meant, and a manifest lists "
            "whole files; cut it into files, for example `ffmpeg -ss START -t DURATION -i IN -ar 16000 -ac 1 OUT.flac`"
        )


def as_on_disk(root: Path, path: str) -> str:
    """Return the path with accents in the file system's Unicode form, if a list has the other one."""
    if path.isascii() or os.path.lexists(os.path.join(root, path)):
        return path
    there = ""
    for part in path.split("/"):
        forms = (part, unicodedata.normalize("NFC", part), unicodedata.normalize("NFD", part))
        there += next((form for form in forms if os.path.lexists(os.path.join(root, there + form))), part) + "/"
    return there[:-1]


def write_split(path: Path, root: Path, entries: Iterable[ManifestEntry]) -> None:
    """Write one manifest and print its size."""
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
    """Report how many files or lines were left out and conflicts with other manifests; return the exit status."""
    for conflict in compare_splits(out, written):
        warn(conflict)
    if num_bad:
        advice = "" if skip_bad else "; correct them and run this again, or give --skip-bad to leave them out"
        warn(f"{num_bad} bad files or lines left out{advice}")
    if str(left_out):
        warn(left_out)
    return 1 if num_bad and not skip_bad else 0


def warn(problem: object) -> None:
    """Print to stderr, on a separate line above a progress bar."""
    from tqdm import tqdm

    tqdm.write(str(problem), file=sys.stderr)


def speaker_of(path: str) -> str:
    """Return the speaker in ``.../<speaker>/<chapter>/<utterance>.flac``."""
    return PurePosixPath(path).parts[-3]


def run_script(main: Callable[[], int | None]) -> None:
    """Run a script's main and exit with its status; an error of user or system is one sentence, status 1."""
    try:
        sys.exit(main())
    except (StarError, OSError) as error:  # a full disk is for the user to fix as well
        print(error, file=sys.stderr)
        sys.exit(1)
