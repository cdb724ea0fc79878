"""Names of utterances: the key by which lists, transcripts and labels agree on an utterance.

The same utterance has several names: with an extension or without, in another format, in either Unicode form of its
accents (macOS writes names decomposed, most tables are composed), and as the 16 kHz copy that ``--resample`` made.
"""

import hashlib
import os
import posixpath
import re
import unicodedata

_UNREADABLE = """3g2 3gp aac ac3 alac al amr ape awb dts gsm m4a m4b mka mkv mov mp4 pcm ra raw spx tta ul vox webm wma
    wv"""
_READABLE = """aif aifc aiff au avr bwf caf flac htk mp1 mp2 mp3 mpga nist oga ogg opus paf pvf rf64 sd2 sds snd sph svx
    voc w64 wav wave wavex wve xi"""
UNREADABLE_EXTENSIONS = frozenset(_UNREADABLE.split())
"""Extensions of audio files that soundfile cannot read by itself; in lower case, without the dot."""
AUDIO_EXTENSIONS = UNREADABLE_EXTENSIONS | frozenset(_READABLE.split())
"""Extensions that do not distinguish one utterance from another."""

_LONGEST = 255  # bytes of a file's name, on almost every file system
_COPY_MARK = re.compile(r"(?<=[^/])\.16k-[0-9a-f]{12}\.flac\Z")
_ANY_MARK = re.compile(r"[.~]16k-[0-9a-f]{12}\.flac\Z")


def place_of(path: str) -> str:
    """Return the absolute path without ``.`` and ``..``, the same for each way to write it; the file need not exist."""
    plain = os.path.abspath(path)
    if ".." in path.split("/"):
        folder, name = os.path.split(os.path.join(os.getcwd(), path))
        try:
            if not os.path.samefile(folder, os.path.dirname(plain)):  # a link before a `..` leads elsewhere
                return os.path.join(os.path.realpath(folder), name)
        except OSError:
            pass
    return plain


def copy_name(name: str, place: str) -> str:
    """Return the name of a file's 16 kHz copy: ``a.wav.16k-<12 hexadecimal digits of its place>.flac``.

    Copies from two places differ even if their names are the same, or the same to a file system that ignores case or
    Unicode form. A name too long for one more ending is cut and marked ``~16k-``: it no longer identifies its source.

    Args:
        name: the source's own, without folders.
        place: the source's absolute path, with offset and size for an archive's entry.
    """
    ending = f"16k-{hashlib.sha256(os.fsencode(place)).hexdigest()[:12]}.flac"
    if len(os.fsencode(name)) + 1 + len(ending) <= _LONGEST:
        return f"{name}.{ending}"
    return f"{os.fsencode(name)[: _LONGEST - 1 - len(ending)].decode(errors='ignore')}~{ending}"


def is_copy(path: str) -> bool:
    """Return whether a path is named as ``copy_name`` names copies."""
    return bool(_ANY_MARK.search(path))


def original_name(path: str) -> str:
    """Return a path without the ending that ``copy_name`` added, if any, in composed Unicode form."""
    while match := _COPY_MARK.search(path):
        path = path[: match.start()]
    return unicodedata.normalize("NFC", path)


def utterance_key(path: str) -> tuple[str, ...]:
    """Return the parts of a path, the last one without audio extensions and marks of copies, in composed Unicode form.

    A key that ends in another one matches it: ``('corpus', 'spk1', 'a')`` matches ``('a',)``. Absolute or relative,
    with ``.`` and ``..`` or without, and with either slash, the same path gives the same parts. A dot alone makes no
    extension: ``rec.1`` and ``rec.2`` are two utterances.
    """
    parts = [part for part in posixpath.normpath(path.replace("\\", "/")).split("/") if part not in ("", ".", "..")]
    if not parts:
        return ()
    name = parts.pop()
    while (shorter := _without_extension(original_name(name))) != name:
        name = shorter
    return (*(unicodedata.normalize("NFC", part) for part in parts), name)


def has_audio_extension(name: str) -> bool:
    """Return whether a file's name ends in an audio extension, in any case; a name that is all ending does not."""
    stem, dot, extension = name.rpartition(".")
    return bool(stem and dot) and extension.lower() in AUDIO_EXTENSIONS


def _without_extension(name: str) -> str:
    return name.rpartition(".")[0] if has_audio_extension(name) else name
