"""``fairseq-star stream``: run a streaming student on a file or a pipe, frame by frame."""

import logging
import os
import sys
import time
from collections.abc import Iterator

import numpy as np

from fairseq_star.audio.file import open_to_the_end, read_blocks
from fairseq_star.deploy.streaming.streams import Streams
from fairseq_star.errors import StarError
from fairseq_star.formats import load_student

logger = logging.getLogger(__name__)

STDIN = "-"
RAW_FORMATS = {
    "s16le": ("<i2", 2.0**15),
    "s16be": (">i2", 2.0**15),
    "s32le": ("<i4", 2.0**31),
    "f32le": ("<f4", 1.0),
    "f32be": (">f4", 1.0),
}
"""Formats of raw samples, as ffmpeg names them -> type and full scale."""
CONTAINERS = {
    "WAV": (b"RIFF", b"RIFX", b"RF64"), "W64": (b"riff",), "FLAC": (b"fLaC",), "Ogg": (b"OggS",), "AIFF": (b"FORM",),
    "AU": (b".snd",), "CAF": (b"caff",), "NIST": (b"NIST",), "MP3": (b"ID3",), "WebM or Matroska": (b"\x1aE\xdf\xa3",),
}  # fmt: skip
"""Audio files by the bytes that they begin with."""
HEAD_BYTES = 8  # that :func:`container_of` looks at
IMPLAUSIBLE = 0.3  # mean magnitude of samples; speech is below 0.1, bytes taken for another format at 0.5


def stream(
    checkpoint: str,
    audio: str,
    *,
    chunk_frames: int | None = None,
    num_values: int = 4,
    raw_format: str | None = None,
    channels: int | None = None,
) -> str:
    """Print the last layer's frames of ``audio`` as they become final.

    A line is a frame: its number, the time in seconds that it begins at, and its first values. After each
    chunk a line that begins with ``#`` reports what was received and the real-time factor so far, computing time alone.

    Args:
        checkpoint: a streaming student's.
        audio: a file, a pipe that a file comes through (such as ``/dev/stdin``), or ``-`` for raw samples through
            standard input, at the student's rate.
        chunk_frames: frames of a chunk; the size in use when None.
        num_values: how many of a frame's values are printed; all when below 0.
        raw_format: of standard input, a name of :data:`RAW_FORMATS`; ``s16le`` when None.
        channels: of standard input, interleaved; their mean is processed; 1 when None.

    Returns:
        A sentence on the whole: frames, real-time factor, latency, memory of the stream.

    Raises:
        StarError: no streaming student, or audio that cannot be read or is of another form.
    """
    if audio != STDIN and not (raw_format is None and channels is None):
        raise StarError(f"stream: --format and --channels are for raw samples through -, not for the file {audio}")
    student = load_student(checkpoint, "stream")
    live = Streams.of(student, chunk_frames=chunk_frames)
    rate, period = student.sample_rate, student.model.geometry.downsample_rate / student.sample_rate
    shown = slice(None, None if num_values < 0 else num_values)
    received = given = 0
    busy = 0.0

    def process(piece: np.ndarray | None) -> None:
        """Feed a piece and print its frames; None ends the stream."""
        nonlocal received, given, busy
        start = time.perf_counter()
        try:
            [states] = live.flush() if piece is None else live.feed([piece])
        except StarError as error:
            raise StarError(f"stream: {audio}, after {received / rate:.3f} s: {error}") from error
        busy += time.perf_counter() - start
        received += 0 if piece is None else len(piece)
        for frame in states[-1]:
            values = " ".join(f"{value:.4f}" for value in frame[shown].tolist())
            print(given, f"{given * period:.3f}", values, sep="\t")
            given += 1
        if states.size(1):
            print(f"# received {received / rate:.3f} s, real-time factor {busy * rate / received:.4f}", flush=True)

    hop = live.chunk_frames * live.shape.downsample_rate
    try:
        raw = raw_format or "s16le", 1 if channels is None else channels
        for piece in _from_stdin(rate, hop, *raw) if audio == STDIN else _from_file(audio, rate, hop):
            process(piece)
    except KeyboardInterrupt:
        pass  # ends live audio
    process(None)
    if not given:
        raise StarError(
            f"stream: {audio} holds {received} samples, fewer than the {live.shape.receptive_field} of a frame"
        )
    return (
        f"{given} frames of {received / rate:.2f} s in chunks of {live.chunk_frames}: real-time factor "
        f"{busy * rate / received:.4f}, algorithmic latency {live.look_ahead:g} ms, {live.state_bytes:,} bytes a stream"
    )


def _from_file(path: str, sample_rate: int, num_samples: int) -> Iterator[np.ndarray]:
    with open_to_the_end(path) as (audio, stated):
        if (audio.samplerate, audio.channels) != (sample_rate, 1):
            raise StarError(
                f"stream: {path} has {audio.samplerate} Hz and {audio.channels} channels; this student receives "
                f"{sample_rate} Hz, mono: convert it, for example with `sox IN -r {sample_rate} -c 1 OUT`"
            )
        for block in read_blocks(audio, stated, num_samples, f"stream: {path}"):
            yield block[:, 0]


def _from_stdin(sample_rate: int, num_samples: int, raw_format: str, channels: int) -> Iterator[np.ndarray]:
    """Yield the samples that have arrived, at most ``num_samples`` at a time; wait only where there are none."""
    if channels < 1:
        raise StarError(f"stream: --channels {channels} must be 1 or more")
    if sys.stdin is None:
        raise StarError("stream: standard input is closed; pipe raw samples into it, or name a file instead of -")
    kind, scale = RAW_FORMATS[raw_format]
    width = np.dtype(kind).itemsize * channels
    head, rest, count, magnitude = b"", b"", 0, 0.0
    while data := os.read(sys.stdin.fileno(), num_samples * width):
        if len(head) < HEAD_BYTES:  # a pipe may bring them one by one
            head = (head + data)[:HEAD_BYTES]
            if container := container_of(head):
                raise StarError(
                    f"stream: standard input holds a file ({container}), not raw samples; give those of `ffmpeg -i "
                    f"FILE -f s16le -ar {sample_rate} -ac 1 -`, or name the file (or /dev/stdin) instead of -"
                )
        data = rest + data
        whole = len(data) // width * width
        rest = data[whole:]
        samples = np.frombuffer(data[:whole], kind).astype(np.float32).reshape(-1, channels).mean(1) / scale
        before, count = count, count + len(samples)
        magnitude += float(np.abs(samples).sum())
        if before < sample_rate <= count and magnitude / count > IMPLAUSIBLE:
            logger.warning(
                f"stream: the first second has a mean magnitude of {magnitude / count:.2f} of full scale, which no "
                f"speech has: are these samples {raw_format} with {channels} channel(s)? --format and --channels say so"
            )
        yield samples
    if rest:
        logger.warning(
            f"stream: the last {len(rest)} byte(s) are no whole sample of {raw_format} with {channels} channel(s) and "
            "were left out: is the input cut short, or of another format?"
        )


def container_of(data: bytes) -> str | None:
    """Return the kind of audio file that begins with these bytes; None for an unknown one."""
    for kind, beginnings in CONTAINERS.items():
        if data.startswith(beginnings):
            return kind
    if data[4:8] == b"ftyp":
        return "MP4 or M4A"
    # An MP3 frame without tags: 11 bits set, a layer, a bit rate and a sample rate that exist; and no silence after it.
    header = int.from_bytes(data[:4], "big")
    if header >> 21 == 0x7FF and header >> 17 & 3 and header >> 12 & 15 not in (0, 15) and header >> 10 & 3 != 3:
        return "MP3"
    return None
