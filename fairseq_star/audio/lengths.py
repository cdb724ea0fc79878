"""Whether an audio file states its own length, and holds as much.

libsndfile takes what is there for the whole: a WAV, AIFF, AU, W64, RF64, NIST or Ogg file that was cut short is to it a
shorter one, and the length of an MP3 file without a Xing header is a guess. Here the header is read again for what it
states. Nothing is decoded: of a FLAC or MP3 file cut short, only decoding its last sample tells.
"""

import io
import mmap
import os
import re
import struct
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

import soundfile

from fairseq_star.errors import StarError

UNKNOWN = 2**63 - 1
"""soundfile's `frames` where libsndfile has nothing to tell."""
MOST_CHUNKS = 1000
LARGEST_OGG_PAGE = 65_307  # bytes


def cut_short(held: int, stated: int, what: str = "samples") -> str:
    """A sentence on audio that ends too early, from its verb on."""
    return f"is cut short: holds {held} of the {stated} {what} its header states; restore it"


def check_length(path: str, audio: soundfile.SoundFile, file: BinaryIO, told_samples: int | None = None) -> None:
    """Refuses audio whose ``frames`` is not known to be the whole.

    Args:
        path: for the sentence.
        audio: the audio, open.
        file: the same file's bytes; its place is left as it is.
        told_samples: the length that a manifest or table states in the file's stead. That will do where the length
            follows from the number of bytes; the caller compares the two.

    Raises:
        StarError: the file is cut short, or does not state its length; begins with the path.
    """
    guessed = audio.frames in (0, UNKNOWN) or audio.format == "MP3"
    if not states_length(path, audio, file) and (guessed or told_samples is None):
        raise StarError(
            f"{path}: does not state its length, as when it was written to a pipe; convert it with --resample, or for"
            " example `sox IN OUT.flac`"
        )


def states_length(path: str, audio: soundfile.SoundFile, file: BinaryIO) -> bool:
    """Whether ``audio.frames`` is a length that the file states. Arguments as of ``check_length``.

    Raises:
        StarError: the file is cut short: it holds less than it states; begins with the path.
    """
    if audio.frames == UNKNOWN or audio.format in _NEVER_LESS:
        return audio.frames != UNKNOWN
    try:
        return _CHECKS.get(audio.format, _logged)(audio, _Bytes(file))
    except struct.error:  # an end in mid-header
        return False
    except StarError as error:
        raise StarError(f"{path}: {error}") from None


class _Bytes:
    """A file's, read without moving its place, which libsndfile shares. Most headers lie in the part read first."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.num_bytes = file.getbuffer().nbytes if isinstance(file, io.BytesIO) else os.fstat(file.fileno()).st_size
        self.start = self._read(0, 512)

    def read(self, place: int, size: int) -> bytes:
        return self.start[place : place + size] if place + size <= len(self.start) else self._read(place, size)

    def _read(self, place: int, size: int) -> bytes:
        if isinstance(self.file, io.BytesIO):
            return bytes(self.file.getbuffer()[place : place + size])
        return os.pread(self.file.fileno(), size, place)


def find_mpeg_audio(file: BinaryIO) -> int:
    """Where the MPEG audio of an MP3 file begins, behind its ID3v2 tags."""
    return _find_mpeg_audio(_Bytes(file))


def _find_mpeg_audio(data: _Bytes) -> int:
    start = 0
    while True:
        head = data.read(start, 10)
        if len(head) < 10 or head[:3] != b"ID3":
            return start
        size = sum((byte & 127) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
        start += 10 + size + (10 if head[5] & 16 else 0)  # bit 4: a footer


class _Chunks(NamedTuple):
    """A format made of chunks."""

    first: int  # byte where the first begins
    head: str  # `struct`: a chunk's name and size
    audio: bytes  # name of the one that holds the audio
    counted: int = 0  # bytes of the head that the size includes
    aligned: int = 2


def _find_audio(layout: _Chunks, data: _Bytes) -> tuple[int, int] | None:
    """Where the audio begins, and how many bytes of it are stated."""
    head = struct.Struct(layout.head.replace("<", ">") if data.read(0, 4) == b"RIFX" else layout.head)
    place, long_size = layout.first, 0
    for _ in range(MOST_CHUNKS):
        if place + head.size > data.num_bytes:
            break
        name, size = head.unpack(data.read(place, head.size))
        place += head.size
        size = max(size - layout.counted, 0)
        if name == b"ds64":  # RF64's sizes, of which 32 bits say that they are here
            _, long_size = struct.unpack("<QQ", data.read(place, 16))
        if name == layout.audio:
            return place, long_size if long_size and size == 2**32 - 1 else size
        place += size + -size % layout.aligned
    return None


def _chunked(layout: _Chunks) -> Callable[[soundfile.SoundFile, _Bytes], bool]:
    def check(_: soundfile.SoundFile, data: _Bytes) -> bool:
        found = _find_audio(layout, data)
        if found is None:
            return False
        place, stated = found
        if stated == 0 and _all_chunks(place, layout, data):
            return True
        return _compare(data.num_bytes - place, stated)

    return check


def _all_chunks(place: int, layout: _Chunks, data: _Bytes) -> bool:
    """Whether nothing but more chunks follows; else it is audio of which the writer never told the size."""
    head = struct.Struct(layout.head)
    while place + head.size <= data.num_bytes:
        name, size = head.unpack(data.read(place, head.size))
        if not name.isascii() or not name[:4].decode().isprintable():
            return False
        place += head.size + max(size - layout.counted, 0)
        place += -place % layout.aligned
    return place == data.num_bytes


def to_its_end(audio: soundfile.SoundFile, file: BinaryIO) -> BinaryIO | None:
    """A WAV file that says it holds nothing, and does hold something, as if it said how much. None for any other."""
    if audio.frames or audio.format not in ("WAV", "WAVEX"):
        return None
    data = _Bytes(file)
    place, _ = _find_audio(_WAV, data) or (data.num_bytes, 0)
    if place == data.num_bytes:
        return None
    size = struct.pack("<I" if data.read(0, 4) == b"RIFF" else ">I", min(data.num_bytes - place, 2**32 - 1))
    if isinstance(file, io.BytesIO):
        changed = io.BytesIO(file.getvalue())
        changed.getbuffer()[place - 4 : place] = size
        return changed
    changed = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # the file itself stays as it is
    changed[place - 4 : place] = size
    return changed


def _au(_: soundfile.SoundFile, data: _Bytes) -> bool:
    head = data.read(0, 12)
    offset, size = struct.unpack("<II" if head[:4] == b"dns." else ">II", head[4:])
    return _compare(data.num_bytes - offset, size)


def _compare(held: int, stated: int) -> bool:
    """Bytes of audio there are, against those stated."""
    if held >= stated > 0:
        return True
    # Writers to a pipe state nothing, all ones, or the largest round number below 2**31 or 2**32 (sox: 0x7f000000).
    if stated <= 0 or stated >= 2**62 or any(0 <= limit - stated <= 2**24 for limit in (2**31, 2**32)):
        return False
    raise StarError(cut_short(held, stated, "bytes of audio"))


def _nist(audio: soundfile.SoundFile, data: _Bytes) -> bool:
    stated = re.search(rb"\bsample_count -i (\d+)", data.read(0, 4096))
    if stated and int(stated[1]) > audio.frames:
        raise StarError(cut_short(audio.frames, int(stated[1])))
    return stated is not None


def _ogg(_: soundfile.SoundFile, data: _Bytes) -> bool:
    """A stream ends with a page that says so. What is searched for the last whole page holds that and part of one."""
    end = data.read(max(0, data.num_bytes - 2 * LARGEST_OGG_PAGE), 2 * LARGEST_OGG_PAGE)
    start = len(end)
    while (start := end.rfind(b"OggS\0", 0, start)) >= 0:
        header = end[start : start + 27]
        lacing = end[start + 27 : start + 27 + header[-1]] if len(header) == 27 else b""
        if len(header) == 27 and len(lacing) == header[26] and start + 27 + len(lacing) + sum(lacing) <= len(end):
            if header[5] & 4:
                return True
            break
    raise StarError(
        "is cut short: its last page does not end the stream; restore it, or if it was never longer, write it anew, for"
        " example `ffmpeg -i IN -c copy OUT`"
    )


# Of a frame without audio (MPEG 1 or 2, mono or stereo, with or without a CRC), the flags and the number of frames.
_XING = re.compile(rb"\xff[\xe0-\xff]..(?:..)?\0{9}(?:\0{8}(?:\0{15})?)?(?:Xing|Info)...(.)(....)", re.DOTALL)


def _mp3(_: soundfile.SoundFile, data: _Bytes) -> bool:
    found = _XING.search(data.read(_find_mpeg_audio(data), 4096))
    return found is not None and bool(found[1][0] & 1) and any(found[2])


def _logged(audio: soundfile.SoundFile, _: _Bytes) -> bool:
    """Formats that hardly occur, from what libsndfile notes when it opens them."""
    log = audio.extra_info
    if re.search(r"truncated|\bshould be\b", log):
        raise StarError("is cut short: holds less than its header states; restore it")
    noted = re.findall(r"\b(?:Frames|Cols) *: (\d+)", log)
    if audio.format == "SDS":  # padded to whole blocks, and filled up where it is cut
        return False
    if noted and int(noted[-1]) > audio.frames:
        raise StarError(cut_short(audio.frames, int(noted[-1])))
    return bool(noted) or audio.format in ("VOC", "WVE")


_WAV = _Chunks(12, "<4sI", b"data")
_NEVER_LESS = {"FLAC", "HTK"}  # than stated: decoding stops with an error, libsndfile opens none
_WAVE_64 = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # the end of every name in it
_CHECKS: dict[str, Callable[[soundfile.SoundFile, _Bytes], bool]] = {
    "WAV": _chunked(_WAV),
    "WAVEX": _chunked(_WAV),
    "RF64": _chunked(_WAV),
    "W64": _chunked(_Chunks(40, "<16sQ", b"data" + _WAVE_64, counted=24, aligned=8)),
    "AIFF": _chunked(_Chunks(12, ">4sI", b"SSND")),
    "SVX": _chunked(_Chunks(12, ">4sI", b"BODY")),
    "CAF": _chunked(_Chunks(8, ">4sQ", b"data", aligned=1)),
    "AU": _au,
    "NIST": _nist,
    "OGG": _ogg,
    "MP3": _mp3,
}
