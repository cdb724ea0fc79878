"""Lengths that audio files state in their headers, compared with the bytes that are there.

libsndfile takes what is there for the whole: a WAV, AIFF, AU, W64, RF64, NIST or Ogg file that was cut short looks like
a shorter one to it, and the length of an MP3 file without a Xing header is a guess. Here the header is read again for
the length it states. Nothing is decoded: that a FLAC or MP3 file is cut short only decoding its last sample shows.
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
"""soundfile's `frames` where libsndfile does not know the length."""
MOST_CHUNKS = 1000
LARGEST_OGG_PAGE = 65_307  # bytes


def cut_short(present: int, stated: int, what: str = "samples") -> str:
    """Return a sentence on audio that ends too early, from its verb on."""
    return f"is cut short: holds {present} of the {stated} {what} its header states; restore it"


def check_length(path: str, audio: soundfile.SoundFile, file: BinaryIO, stated_samples: int | None = None) -> None:
    """Refuse audio whose ``frames`` may not be the whole.

    Args:
        path: for the message.
        audio: the audio, open.
        file: the same file's bytes; its position is left as it is.
        stated_samples: the length that a manifest or table states instead of the file. That suffices where the length
            follows from the number of bytes; the caller compares the two.

    Raises:
        StarError: the file is cut short, or does not state its length; begins with the path.
    """
    guessed = audio.frames in (0, UNKNOWN) or audio.format == "MP3"
    if not states_length(path, audio, file) and (guessed or stated_samples is None):
        raise StarError(
            f"{path}: does not state its length, as when it was written to a pipe; convert it with --resample, or for"
            " example `sox IN OUT.flac`"
        )


def states_length(path: str, audio: soundfile.SoundFile, file: BinaryIO) -> bool:
    """Return whether ``audio.frames`` is a length that the file states. Arguments as of ``check_length``.

    Raises:
        StarError: the file is cut short: shorter than it states; begins with the path.
    """
    if audio.frames == UNKNOWN or audio.format in _NEVER_LESS:
        return audio.frames != UNKNOWN
    try:
        return _CHECKS.get(audio.format, _logged)(audio, _Bytes(file))
    except struct.error:  # it ends within the header
        return False
    except StarError as error:
        raise StarError(f"{path}: {error}") from None


class _Bytes:
    """Bytes of a file, read without moving its position, which libsndfile shares; most headers are in the first 512."""

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
    """Return the byte where the MPEG audio of an MP3 file begins, behind its ID3v2 tags."""
    data, start = _Bytes(file), 0
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
    audio: bytes  # name of the chunk with the audio
    counted: int = 0  # bytes of the head that the size includes
    aligned: int = 2

    def find_audio(self, data: _Bytes) -> tuple[int, int] | None:
        """Return where the audio begins, and its size in bytes as stated."""
        head = struct.Struct(self.head.replace("<", ">") if data.read(0, 4) == b"RIFX" else self.head)
        place, long_size = self.first, 0
        for _ in range(MOST_CHUNKS):
            if place + head.size > data.num_bytes:
                break
            name, size = head.unpack(data.read(place, head.size))
            place += head.size
            size = max(size - self.counted, 0)
            if name == b"ds64":  # RF64's sizes, to which 32 bits of ones refer
                _, long_size = struct.unpack("<QQ", data.read(place, 16))
            if name == self.audio:
                return place, long_size if long_size and size == 2**32 - 1 else size
            place += size + -size % self.aligned
        return None

    def check(self, _: soundfile.SoundFile, data: _Bytes) -> bool:
        audio = self.find_audio(data)
        if audio is None:
            return False
        place, stated = audio
        return (stated == 0 and self._all_chunks(place, data)) or _compare(data.num_bytes - place, stated)

    def _all_chunks(self, place: int, data: _Bytes) -> bool:
        """Return whether only more chunks follow; otherwise it is audio whose size the writer left at 0."""
        head = struct.Struct(self.head)
        while place + head.size <= data.num_bytes:
            name, size = head.unpack(data.read(place, head.size))
            if not name.isascii() or not name[:4].decode().isprintable():
                return False
            place += head.size + max(size - self.counted, 0)
            place += -place % self.aligned
        return place == data.num_bytes


def with_its_size(audio: soundfile.SoundFile, file: BinaryIO) -> BinaryIO | None:
    """Return a WAV file that states no audio but contains some with its true size filled in; None for any other."""
    if audio.frames or audio.format not in ("WAV", "WAVEX"):
        return None
    data = _Bytes(file)
    place, _ = _WAV.find_audio(data) or (data.num_bytes, 0)
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


def find_wav_audio(head: bytes) -> tuple[int, int] | None:
    """Return where the audio of a WAV file begins, and its size in bytes as stated, if ``head`` reaches that far."""
    return _WAV.find_audio(_Bytes(io.BytesIO(head)))


def is_size(stated: int) -> bool:
    """Return whether a number of bytes is a size, not what writers to a pipe put in its place."""
    # Nothing, all ones, or the largest round number below 2**31 or 2**32 (sox: 0x7f000000).
    return 0 < stated < 2**62 and not any(0 <= limit - stated <= 2**24 for limit in (2**31, 2**32))


def _au(_: soundfile.SoundFile, data: _Bytes) -> bool:
    head = data.read(0, 12)
    offset, size = struct.unpack("<II" if head[:4] == b"dns." else ">II", head[4:])
    return _compare(data.num_bytes - offset, size)


def _compare(present: int, stated: int) -> bool:
    """Return whether a size in bytes is stated; raise StarError if fewer are present."""
    if present >= stated > 0:
        return True
    if not is_size(stated):
        return False
    raise StarError(cut_short(present, stated, "bytes of audio"))


def _nist(audio: soundfile.SoundFile, data: _Bytes) -> bool:
    stated = re.search(rb"\bsample_count -i (\d+)", data.read(0, 4096))
    if stated and int(stated[1]) > audio.frames:
        raise StarError(cut_short(audio.frames, int(stated[1])))
    return stated is not None


def _ogg(_: soundfile.SoundFile, data: _Bytes) -> bool:
    """Check for the flag of the last page; the bytes searched contain the last whole page and perhaps part of one."""
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
        "is cut short: its last page does not end the stream; restore it, or if it was never longer, write it again,"
        " for example `ffmpeg -i IN -c copy OUT`"
    )


# Of a frame without audio (MPEG 1 or 2, mono or stereo, with or without a CRC), the flags and the number of frames.
_XING = re.compile(rb"\xff[\xe0-\xff]..(?:..)?\0{9}(?:\0{8}(?:\0{15})?)?(?:Xing|Info)...(.)(....)", re.DOTALL)


def _mp3(_: soundfile.SoundFile, data: _Bytes) -> bool:
    header = _XING.search(data.read(find_mpeg_audio(data.file), 4096))
    return header is not None and bool(header[1][0] & 1) and any(header[2])


def _logged(audio: soundfile.SoundFile, _: _Bytes) -> bool:
    """Check rare formats by libsndfile's log of opening them."""
    log = audio.extra_info
    if re.search(r"truncated|\bshould be\b", log):
        raise StarError("is cut short: holds less than its header states; restore it")
    noted = re.findall(r"\b(?:Frames|Cols) *: (\d+)", log)
    if audio.format == "SDS":  # padded to whole blocks, also where it is cut
        return False
    if noted and int(noted[-1]) > audio.frames:
        raise StarError(cut_short(audio.frames, int(noted[-1])))
    return bool(noted) or audio.format in ("VOC", "WVE")


_WAV = _Chunks(12, "<4sI", b"data")
_NEVER_LESS = {"FLAC", "HTK"}  # than stated: decoding a shorter FLAC fails, and libsndfile opens no shorter HTK
_WAVE_64 = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # the end of every chunk's name
_CHECKS: dict[str, Callable[[soundfile.SoundFile, _Bytes], bool]] = {
    "WAV": _WAV.check,
    "WAVEX": _WAV.check,
    "RF64": _WAV.check,
    "W64": _Chunks(40, "<16sQ", b"data" + _WAVE_64, counted=24, aligned=8).check,
    "AIFF": _Chunks(12, ">4sI", b"SSND").check,
    "SVX": _Chunks(12, ">4sI", b"BODY").check,
    "CAF": _Chunks(8, ">4sQ", b"data", aligned=1).check,
    "AU": _au,
    "NIST": _nist,
    "OGG": _ogg,
    "MP3": _mp3,
}
