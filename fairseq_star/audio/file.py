"""Open and measure audio files and fairseq's archive entries, and compare them with a manifest."""

import io
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import BinaryIO

import numpy as np
import soundfile

from fairseq_star.audio.lengths import (
    check_length,
    cut_short,
    find_mpeg_audio,
    find_wav_audio,
    is_size,
    states_length,
    with_its_size,
)
from fairseq_star.audio.threads import map_in_threads, show_progress
from fairseq_star.errors import StarError
from fairseq_star.manifest import SAMPLE_RATE, ManifestEntry, parse_archive_entry
from fairseq_star.runtime.files import is_pipe

# fairseq takes a path with any other extension for an archive entry as soon as it contains a colon.
_PLAIN_EXTENSIONS = {".npy", ".wav", ".flac", ".ogg"}
_ARCHIVED_FORMATS = {"WAV", "WAVEX", "FLAC", "OGG"}  # that fairseq's `is_sf_audio_data` accepts

BLOCK = 2**16  # samples, or bytes
LONGEST_HEAD = 2**20  # bytes of a WAV file before its audio


def probe_audio(
    path: str | os.PathLike,
    sample_rate: int = SAMPLE_RATE,
    read_end: bool = True,
    stated_samples: int | None = None,
) -> int:
    """Return the number of samples that soundfile, and so fairseq, decodes a file to, from its header.

    Args:
        path: an audio file that soundfile can read, or a ``file.zip:offset:length`` entry as fairseq writes it.
        sample_rate: the rate it must have, Hz.
        read_end: also decode the last sample, which detects a FLAC or MP3 file cut short, whose header is whole.
        stated_samples: the length that a manifest or table states, which may replace that of a header that states
            none; the caller compares the two.

    Raises:
        StarError: missing, unreadable, cut short, of a length that it does not state, empty, not mono, or of another
            rate; begins with the path.
    """
    path = os.fspath(path)
    with _open_bytes(path) as file, _decoder(path, file) as audio:
        num_samples, channels, rate = audio.frames, audio.channels, audio.samplerate
        check_length(path, audio, file, stated_samples)
        if read_end and num_samples > 0:
            _check_end(path, audio)
        if isinstance(file, io.BytesIO) and audio.format not in _ARCHIVED_FORMATS:
            raise StarError(f"{path}: is {audio.format}; fairseq reads WAV, FLAC and Ogg alone from an archive")
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


def _check_end(path: str, audio: soundfile.SoundFile) -> None:
    """Decode the last sample; where that fails, the whole: GSM and G.72x cannot be decoded from every sample on."""
    stated = audio.frames
    with suppress(soundfile.SoundFileError):
        audio.seek(stated - 1)
        if len(audio.read(1)) == 1:
            return
    try:
        decoded = 0
        with open_audio(path) as again:
            while read := len(again.read(min(BLOCK, stated - decoded), dtype="float32")):
                decoded += read
    except soundfile.SoundFileError as error:
        raise StarError(
            f"{path}: is cut short or damaged: not all of the {stated} samples its header states can be decoded"
            f" ({_reason(error)}); restore it"
        ) from error
    if decoded != stated:
        raise StarError(f"{path}: {cut_short(decoded, stated)}")


@contextmanager
def open_audio(path: str | os.PathLike) -> Iterator[soundfile.SoundFile]:
    """Open an audio file, or an archive entry, of any rate and number of channels.

    Raises:
        StarError: missing, empty, or no audio; begins with the path.
    """
    path = os.fspath(path)
    with _open_bytes(path) as file, _decoder(path, file) as audio:
        yield audio


@contextmanager
def open_to_the_end(path: str | os.PathLike) -> Iterator[tuple[soundfile.SoundFile, int | None]]:
    """Open audio to be read once, from start to end, also where the header does not say where that is.

    Yields:
        The audio, whose ``frames`` may be no length, and the number of samples it states, or None where it states none:
        then it ends with a ``read`` that returns fewer samples than requested.

    Raises:
        StarError: as ``open_audio``; or the file is shorter than its header states. A pipe is read too, WAV as it
            comes.
    """
    path = os.fspath(path)
    with _open_pipe(path) if is_pipe(path) else _open_bytes(path) as file:
        if isinstance(file, _Rest):
            with _piped(path, file) as pipe, _decoder(path, pipe, _Forward) as audio:
                yield audio, audio.frames if file.states_size else None
            return
        with _decoder(path, file, _Forward) as audio:
            if states_length(path, audio, file):
                yield audio, audio.frames
                return
            changed = with_its_size(audio, file)
            if audio.format != "MP3" and changed is None:
                yield audio, None
                return
        if changed is not None:
            with changed, _decoder(path, changed, _Forward) as audio:
                yield audio, None
            return
        # libsndfile guesses the length of an MP3 file and reads no more, but does not guess that of a pipe.
        file.seek(find_mpeg_audio(file))
        with _piped(path, file) as pipe, _decoder(path, pipe, _Forward) as audio:
            yield audio, None


def read_blocks(audio: soundfile.SoundFile, stated: int | None, num_samples: int, name: str) -> Iterator[np.ndarray]:
    """Yield the samples (N x channels, float32) of audio of :func:`open_to_the_end`, at most ``num_samples`` at a time.

    Args:
        stated: the number of samples that it states, None where it states none.
        name: of the audio, for messages.

    Raises:
        StarError: it is damaged, or shorter than stated.
    """
    count = 0
    try:
        # Never beyond the stated length; where none is stated, a short read is the end.
        while wanted := num_samples if stated is None else min(num_samples, stated - count):
            block = audio.read(wanted, dtype="float32", always_2d=True)
            count += len(block)
            yield block
            if len(block) < wanted:
                break
    except soundfile.SoundFileError as error:
        raise StarError(f"{name} is cut short or damaged ({error}); restore it") from error
    if stated is not None and count < stated:
        raise StarError(f"{name} {cut_short(count, stated)}")


class _Rest:
    """A WAV file that comes through a pipe: its first bytes again, then what is still to come."""

    def __init__(self, head: bytes, place: int, size: int, pipe: BinaryIO):
        self.states_size = is_size(size)
        # Of a size of 0 libsndfile would read nothing, of the largest all there is.
        self._head = head if self.states_size else head[: place - 4] + b"\xff" * 4 + head[place:]
        self._pipe = pipe

    def read(self, size: int = -1) -> bytes:
        head, self._head = self._head, b""
        return head or self._pipe.read(size)


@contextmanager
def _open_pipe(path: str) -> Iterator[BinaryIO | _Rest]:
    """Open a pipe: WAV to be decoded as it comes, all else as a temporary file of all that came."""
    try:
        pipe = open(path, "rb", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise _unreadable(path, error) from error
    with pipe:
        head = b""
        while len(head) < LONGEST_HEAD and (piece := pipe.read(BLOCK)):
            head += piece
            if len(head) >= 4 and head[:4] != b"RIFF":
                break
            if found := find_wav_audio(head):
                yield _Rest(head, *found, pipe)
                return
        if not head:
            raise StarError(f"{path}: is empty: nothing came through this pipe")
        with tempfile.TemporaryFile(buffering=0) as file:
            file.write(head)
            shutil.copyfileobj(pipe, file)
            file.seek(0)
            yield file


class _Forward(soundfile.SoundFile):
    """Audio without seeking: soundfile seeks after every read, which fails at the end of FLAC of unknown length."""

    def seekable(self) -> bool:
        return False


@contextmanager
def _open_bytes(path: str) -> Iterator[BinaryIO]:
    """Open a file, unbuffered, or the bytes of an archive entry (fairseq's own rule, ``parse_path``)."""
    if Path(path).suffix not in _PLAIN_EXTENSIONS and ":" in path:
        yield _read_archive_entry(path)
        return
    try:
        about = os.stat(path)
    except (OSError, ValueError):
        about = None
    if about is not None and stat.S_ISFIFO(about.st_mode):
        raise StarError(f"{path}: is a pipe, which can be read only once; write it to a file and list that")
    if about is None or not stat.S_ISREG(about.st_mode):
        raise StarError(f"{path}: no such file; correct the path or its root folder, or restore the file")
    if about.st_size == 0:
        raise StarError(f"{path}: is empty; restore or remove it")
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise _unreadable(path, error) from error
    with file:
        yield file


def _read_archive_entry(path: str) -> io.BytesIO:
    entry = parse_archive_entry(path)
    if entry is None:
        raise StarError(f"{path}: fairseq takes a colon here for 'file.zip:offset:length'; rename the file")
    try:
        with open(entry.archive, "rb") as archive:
            archive.seek(entry.offset)
            data = archive.read(entry.size)
    except OSError as error:
        raise StarError(f"{path}: cannot read the archive ({error.strerror}); correct the manifest") from error
    if len(data) != entry.size:
        raise StarError(f"{path}: the archive ends before that entry does; write the manifest again")
    return io.BytesIO(data)


def _decoder(path: str, file: BinaryIO, kind: type[soundfile.SoundFile] = soundfile.SoundFile) -> soundfile.SoundFile:
    # Given a name, libsndfile looks for macOS's leftover `._NAME` next to it and takes that for the header of some
    # files (MP3), which then cannot be read. Only Sound Designer's files need it.
    by_name = path.lower().endswith(".sd2")
    try:
        if by_name:
            return kind(path)
        return kind(file.fileno(), closefd=False) if isinstance(file, io.FileIO) else kind(file)
    except (soundfile.SoundFileError, OSError) as error:
        raise _unreadable(path, error) from error


@contextmanager
def _piped(path: str, file: BinaryIO | _Rest) -> Iterator[BinaryIO]:
    """Yield a pipe that supplies the rest of a file, or of another pipe as it comes."""
    failed: list[OSError] = []
    reading, writing = os.pipe()

    def feed() -> None:
        try:
            with open(writing, "wb") as pipe:
                while piece := file.read(BLOCK):
                    pipe.write(piece)
                    pipe.flush()
        except (BrokenPipeError, ValueError):
            pass  # closed by the reader
        except OSError as error:
            failed.append(error)

    thread = Thread(target=feed, daemon=True)
    thread.start()
    try:
        with open(reading, "rb", buffering=0) as pipe:
            yield pipe
    finally:
        thread.join(1.0)  # where the reader stops early, it may wait for a pipe that brings nothing
    if failed:
        raise _unreadable(path, failed[0])


def _unreadable(path: str, error: Exception) -> StarError:
    return StarError(f"{path}: cannot be read as audio or is cut short ({_reason(error)}); restore or remove it")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).rsplit(": ", 1)[-1].rstrip(".")


def check_audio(
    root: str | os.PathLike,
    entries: Iterable[ManifestEntry],
    sample_rate: int = SAMPLE_RATE,
    read_end: bool = False,
    num_workers: int | None = None,
    progress: bool = True,
) -> Iterator[str]:
    """Compare a manifest's entries with the files they name.

    To share the work among ranks, give each one ``itertools.islice(entries, rank, None, world_size)``.

    Args:
        root: the manifest's root folder.
        entries: any iterable; only a few are in memory at a time.
        sample_rate: Hz, must be every file's.
        read_end: see ``probe_audio``; off here, because only the headers are fast enough to read in every run.
        num_workers: threads; by default four a core, at most 32.
        progress: show a tqdm progress bar on stderr.

    Yields:
        One sentence for each problem, in manifest order.
    """
    root = os.fspath(root)

    def probe(entry: ManifestEntry) -> int:
        return probe_audio(os.path.join(root, entry.path), sample_rate, read_end, entry.num_samples)

    probed = map_in_threads(probe, entries, num_workers)
    for entry, result in show_progress(probed, "reading audio headers", progress=progress):
        if isinstance(result, StarError):
            yield str(result)
        elif result != entry.num_samples:
            yield (
                f"{os.path.join(root, entry.path)}: holds {result} samples but the manifest says"
                f" {entry.num_samples}; write the manifest again"
            )
