"""fairseq's audio manifest, `{split}.tsv`: the root folder on line 1, then `path<TAB>num_samples` a line.

The one owner of the format: everything here that reads or writes a manifest goes through this file. The format is the
one fairseq's `FileAudioDataset` and `load_audio` read (fairseq/data/audio/raw_audio_dataset.py, hubert_dataset.py),
archive entries `file.zip:offset:length` included. No fairseq and no torch in it: it runs before anything heavy does.
"""

import io
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from fairseq_star.errors import StarError

SAMPLE_RATE = 16_000
"""Hz; what HuBERT and every student here expect."""

# fairseq takes a path with any other extension for an archive entry as soon as it contains a colon.
_PLAIN_EXTENSIONS = {".npy", ".wav", ".flac", ".ogg"}
_ARCHIVE_ENTRY = re.compile(r"(?P<archive>.+\.zip):(?P<offset>\d+):(?P<size>\d+)")


class ManifestEntry(NamedTuple):
    """One line of a manifest: a path below the root (or an archive entry) and its length in samples."""

    path: str
    num_samples: int


def read_manifest(path: str | os.PathLike) -> tuple[str, list[ManifestEntry]]:
    """Reads a manifest whole.

    Returns:
        The root folder as written on line 1, and the entries in file order.

    Raises:
        StarError: the file is missing or no UTF-8 text, has no root line or no entries, or a line is not
            `path<TAB>num_samples` with a positive whole number; the sentence begins `file:line:`.
    """
    path = Path(path)
    try:
        # Not str.splitlines, which also breaks lines at signs that fairseq takes for part of a name.
        with open(path, encoding="utf-8") as file:
            lines = [line.rstrip("\n") for line in file]
    except OSError as error:
        raise StarError(
            f"{path}: cannot read the manifest ({error.strerror}); write one with manifests/librispeech.py"
            " or manifests/audio_folder.py, or correct task.data and the subset's name"
        ) from error
    except UnicodeDecodeError as error:
        raise StarError(f"{path}: is not UTF-8 text, so no manifest; write it anew with manifests/*.py") from error
    root = lines[0].strip() if lines else ""
    if not root or "\t" in root:
        raise StarError(f"{path}:1: expected the root folder of the audio, found {root!r}; put it on the first line")
    entries = [_parse_line(path, number, line) for number, line in enumerate(lines[1:], start=2)]
    if not entries:
        raise StarError(f"{path}: has a root line but no entries; write it anew from a folder that holds audio")
    return root, entries


def _parse_line(path: Path, number: int, line: str) -> ManifestEntry:
    items = line.strip().split("\t")
    # str.isdecimal refuses signs, blanks, underscores and decimal points, all of which int() or a float would let by.
    if len(items) != 2 or not items[0] or not items[1].isdecimal():
        raise StarError(f"{path}:{number}: expected 'path<TAB>num_samples', found {line!r}; mend or delete that line")
    if int(items[1]) == 0:
        raise StarError(f"{path}:{number}: num_samples of {items[0]!r} is 0, must be positive; delete that line")
    return ManifestEntry(items[0], int(items[1]))


def write_manifest(path: str | os.PathLike, root: str | os.PathLike, entries: Sequence[ManifestEntry]) -> None:
    """Writes a manifest atomically (a temporary file beside it, then a rename): a reader never sees half of one.

    Raises:
        StarError: no entries, a size that is not positive, or a root or path the format cannot hold (a tab, a line
            break, or blanks at an end, which fairseq strips off).
    """
    path, root = Path(path), os.fspath(root)
    if not entries:
        raise StarError(f"{path}: no audio to list, the manifest would be empty; check the folder and --ext")
    for text, num_samples in [(root, 1), *entries]:
        if not text or text != text.strip() or re.search(r"[\t\n\r]", text):
            raise StarError(f"{path}: no manifest can hold the path {text!r} (tab, line break, outer blank); rename it")
        if not _is_unicode(text):
            raise StarError(f"{path}: the name {text!r} is not UTF-8, which manifests are written in; rename that file")
        if num_samples <= 0:
            raise StarError(f"{path}: num_samples of {text!r} is {num_samples}, must be positive; leave that file out")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", newline="\n", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            file.write(root + "\n")
            file.writelines(f"{entry_path}\t{num_samples}\n" for entry_path, num_samples in entries)
            file.close()
            os.chmod(file.name, 0o644)  # NamedTemporaryFile makes 0600: a shared data folder must stay readable
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


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
    source = _open_archive_entry(path)
    if source is None and not os.path.isfile(path):
        raise StarError(f"{path}: no such file; correct the manifest's root line or restore the file")
    if source is None and os.path.getsize(path) == 0:
        raise StarError(f"{path}: is empty; restore or remove it")
    try:
        with soundfile.SoundFile(path if source is None else source) as audio:
            num_samples, channels, rate = audio.frames, audio.channels, audio.samplerate
            if read_end and num_samples > 0:
                audio.seek(num_samples - 1)
                if len(audio.read(1)) != 1:
                    raise StarError(f"{path}: ends before the {num_samples} samples of its header; restore it")
    except (soundfile.SoundFileError, OSError) as error:
        reason = str(error).rsplit(": ", 1)[-1].rstrip(".")
        raise StarError(f"{path}: cannot be read as audio or is cut short ({reason}); restore or remove it") from error
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
    from tqdm import tqdm

    def probe(path: str | os.PathLike) -> int | StarError:
        try:
            return probe_audio(path, sample_rate, read_end)
        except StarError as error:
            return error

    paths = list(paths)
    with ThreadPoolExecutor(num_workers or min(32, 4 * (os.cpu_count() or 1))) as pool:
        results = pool.map(probe, paths)
        return list(tqdm(results, total=len(paths), desc="reading audio headers", unit="file", disable=not progress))


def check_audio(
    root: str | os.PathLike,
    entries: Sequence[ManifestEntry],
    sample_rate: int = SAMPLE_RATE,
    read_end: bool = False,
    num_workers: int | None = None,
    progress: bool = True,
) -> list[str]:
    """Compares a manifest's entries with the files they name. To share the work among ranks, hand each one
    `entries[rank::world_size]`.

    Args:
        root: the manifest's root folder.
        entries: what to check.
        sample_rate: Hz, must be every file's.
        read_end: see `probe_audio`; off here, since it is the header alone that every run can afford.
        num_workers: threads; by default four a core, at most 32.
        progress: show a tqdm progress bar on stderr.

    Returns:
        One sentence a problem, in manifest order; empty when all is well.
    """
    found = probe_all(
        [os.path.join(root, entry.path) for entry in entries], sample_rate, read_end, num_workers, progress
    )
    problems = []
    for entry, result in zip(entries, found, strict=True):
        if isinstance(result, StarError):
            problems.append(str(result))
        elif result != entry.num_samples:
            problems.append(
                f"{os.path.join(root, entry.path)}: holds {result} samples but the manifest says"
                f" {entry.num_samples}; write the manifest anew"
            )
    return problems
