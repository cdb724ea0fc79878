"""fairseq's audio manifest, `{split}.tsv`: the root folder on line 1, then `path<TAB>num_samples` a line.

The one owner of the format: everything here that reads or writes a manifest goes through this file. The format is the
one fairseq's `FileAudioDataset` and `load_audio` read (fairseq/data/audio/raw_audio_dataset.py, hubert_dataset.py),
archive entries `file.zip:offset:length` included. No fairseq and no torch in it: it runs before anything heavy does.
"""

import io
import os
import re
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from fairseq_star.errors import StarError

SAMPLE_RATE = 16_000
"""Hz; what HuBERT and every student here expect."""

# fairseq takes a path with any other extension for an archive entry as soon as it contains a colon.
_PLAIN_EXTENSIONS = {".npy", ".wav", ".flac", ".ogg"}
_ARCHIVE_ENTRY = re.compile(r"(?P<archive>[^:]+\.zip):(?P<offset>\d+):(?P<size>\d+)")
_ARCHIVED_FORMATS = {"WAV", "WAVEX", "FLAC", "OGG"}  # what fairseq's `is_sf_audio_data` takes

SECONDS_BETWEEN_LINES = 60  # of progress, in a log file

Item = TypeVar("Item")
Result = TypeVar("Result")


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
    """What `file.zip:offset:size` names; None for any other path."""
    match = _ARCHIVE_ENTRY.fullmatch(path)
    return match and ArchiveEntry(match["archive"], int(match["offset"]), int(match["size"]))


def read_manifest(path: str | os.PathLike) -> tuple[str, list[ManifestEntry]]:
    """Reads a manifest whole.

    Returns:
        The root folder as written on line 1, and the entries in file order.

    Raises:
        StarError: the file is missing or no UTF-8 text, has no root line or no entries, or a line is not
            `path<TAB>num_samples` with a positive whole number; the sentence begins `file:line:`.
    """
    root, entries = stream_manifest(path)
    return root, list(entries)


def stream_manifest(path: str | os.PathLike) -> tuple[str, Iterator[ManifestEntry]]:
    """`read_manifest` without holding the entries: they are read, and refused, as the iterator is used."""
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

    `entries` may be an iterator: none is held.

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
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", newline="\n", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            file.writelines(lines)
            file.close()
            os.chmod(file.name, 0o644)  # NamedTemporaryFile makes 0600: a shared data folder must stay readable
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


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


def probe_audio(path: str | os.PathLike, sample_rate: int = SAMPLE_RATE, read_end: bool = True) -> int:
    """Reads one file's header (or one `file.zip:offset:length` entry's) and tells its length.

    Args:
        path: an audio file soundfile can read, or an archive entry as fairseq writes it.
        sample_rate: the rate it must have, Hz.
        read_end: also decode the last sample, which is what finds a file cut short whose header is whole.

    Returns:
        The number of samples.

    Raises:
        StarError: missing, unreadable, cut short, empty, not mono, or of another rate; begins with the path.
    """
    import soundfile

    path = os.fspath(path)
    try:
        with open_audio(path) as audio:
            num_samples, channels, rate = audio.frames, audio.channels, audio.samplerate
            if read_end and num_samples > 0:
                audio.seek(num_samples - 1)
                if len(audio.read(1)) != 1:
                    raise StarError(f"{path}: ends before the {num_samples} samples of its header; restore it")
            if isinstance(audio.name, io.BytesIO) and audio.format not in _ARCHIVED_FORMATS:
                raise StarError(f"{path}: is {audio.format}; fairseq reads WAV, FLAC and Ogg alone from an archive")
    except (soundfile.SoundFileError, OSError) as error:
        raise _unreadable(path, error) from error
    if num_samples <= 0:
        raise StarError(f"{path}: holds no samples; remove it")
    if channels != 1:
        raise StarError(f"{path}: has {channels} channels, must be mono; convert it, for example `sox IN -c 1 OUT`")
    if rate != sample_rate:
        raise StarError(
            f"{path}: is sampled at {rate} Hz, must be {sample_rate} Hz; resample it, for example"
            f" `sox IN -r {sample_rate} OUT`"
        )
    return num_samples


def open_audio(path: str | os.PathLike) -> "soundfile.SoundFile":  # noqa: F821
    """Opens an audio file, or an archive entry, of any rate and number of channels.

    Raises:
        StarError: missing, empty, or no audio; begins with the path.
    """
    import soundfile

    path = os.fspath(path)
    source = _open_archive_entry(path)
    if source is None and not os.path.isfile(path):
        raise StarError(f"{path}: no such file; correct the path or its root folder, or restore the file")
    if source is None and os.path.getsize(path) == 0:
        raise StarError(f"{path}: is empty; restore or remove it")
    try:
        # Handed a name, libsndfile looks for macOS's leftover `._NAME` beside it and takes that for the header of some
        # files (MP3), which then cannot be read. Sound Designer's alone have theirs there.
        if source is None and not path.lower().endswith(".sd2"):
            source = os.open(path, os.O_RDONLY)
        return soundfile.SoundFile(path if source is None else source)
    except (soundfile.SoundFileError, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> StarError:
    reason = getattr(error, "strerror", None) or str(error).rsplit(": ", 1)[-1].rstrip(".")
    return StarError(f"{path}: cannot be read as audio or is cut short ({reason}); restore or remove it")


def _open_archive_entry(path: str) -> io.BytesIO | None:
    """The bytes of an archive entry, or None where `path` is a plain file (fairseq's own rule, `parse_path`)."""
    if Path(path).suffix in _PLAIN_EXTENSIONS or ":" not in path:
        return None
    match = _ARCHIVE_ENTRY.fullmatch(path)
    if match is None:
        raise StarError(f"{path}: fairseq takes a colon here for 'file.zip:offset:length'; rename the file")
    try:
        with open(match["archive"], "rb") as archive:
            archive.seek(int(match["offset"]))
            data = archive.read(int(match["size"]))
    except OSError as error:
        raise StarError(f"{path}: cannot read the archive ({error.strerror}); correct the manifest") from error
    if len(data) != int(match["size"]):
        raise StarError(f"{path}: the archive ends before that entry does; write the manifest anew")
    return io.BytesIO(data)


def probe_all(
    paths: Iterable[str | os.PathLike],
    sample_rate: int = SAMPLE_RATE,
    read_end: bool = True,
    num_workers: int | None = None,
    progress: bool = True,
) -> list[int | StarError]:
    """`probe_audio` of many files in a pool of threads (soundfile releases the GIL), with a progress bar.

    Returns:
        For each path, in order, its number of samples or the StarError that says what is wrong with it.
    """
    paths = list(paths)
    found = map_in_threads(lambda path: probe_audio(path, sample_rate, read_end), paths, num_workers)
    return [result for _, result in show_progress(found, "reading audio headers", len(paths), progress)]


def map_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], num_workers: int | None = None
) -> Iterator[tuple[Item, Result | StarError]]:
    """Each item and the function's result, or the StarError it raised, in order, from a pool of threads.

    However many items there are, only a few are held: they are taken from `items` as results are handed on.

    Args:
        function: of one item; releases the GIL where it takes time.
        items: any iterable, an endless one too.
        num_workers: threads; by default four a core, at most 32, which suits reading headers.
    """

    def run(item: Item) -> Result | StarError:
        try:
            return function(item)
        except StarError as error:
            return error

    num_workers = num_workers or min(32, 4 * (os.cpu_count() or 1))
    pending: deque = deque()
    with ThreadPoolExecutor(num_workers) as pool:
        try:
            for item in items:
                pending.append((item, pool.submit(run, item)))
                if len(pending) >= 16 * num_workers:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:  # broken off: do not work through what nobody will see
            for _, future in pending:
                future.cancel()


def show_progress(items: Iterable[Item], what: str, total: int | None = None, progress: bool = True) -> Iterator[Item]:
    """The same items under a tqdm bar on stderr, counted as files; a line a minute where stderr is no terminal, so that
    a log file has whole lines alone."""
    if not progress:
        yield from items
    elif sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(items, what, total, unit="file", mininterval=0.5) as bar:  # closed before an error is told
            yield from bar
    else:
        told = time.monotonic()
        count = 0
        for count, item in enumerate(items, start=1):
            if time.monotonic() - told > SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                print(f"{what}: {count:,} files so far", file=sys.stderr, flush=True)
            yield item
        print(f"{what}: {count:,} files", file=sys.stderr, flush=True)


def check_audio(
    root: str | os.PathLike,
    entries: Iterable[ManifestEntry],
    sample_rate: int = SAMPLE_RATE,
    read_end: bool = False,
    num_workers: int | None = None,
    progress: bool = True,
) -> Iterator[str]:
    """Compares a manifest's entries with the files they name, holding few of them at a time. To share the work among
    ranks, hand each one `itertools.islice(entries, rank, None, world_size)`.

    Args:
        root: the manifest's root folder.
        entries: what to check.
        sample_rate: Hz, must be every file's.
        read_end: see `probe_audio`; off here, since it is the header alone that every run can afford.
        num_workers: threads; by default four a core, at most 32.
        progress: show a tqdm progress bar on stderr.

    Yields:
        One sentence a problem, in manifest order; none when all is well.
    """
    root = os.fspath(root)

    def probe(entry: ManifestEntry) -> int:
        return probe_audio(os.path.join(root, entry.path), sample_rate, read_end)

    found = map_in_threads(probe, entries, num_workers)
    for entry, result in show_progress(found, "reading audio headers", progress=progress):
        if isinstance(result, StarError):
            yield str(result)
        elif result != entry.num_samples:
            yield (
                f"{os.path.join(root, entry.path)}: holds {result} samples but the manifest says"
                f" {entry.num_samples}; write the manifest anew"
            )
