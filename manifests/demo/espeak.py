"""eSpeak NG through ctypes: text to 22.05 kHz PCM with the sample at which each phoneme and word begins.

Library and voices come from the package ``espeakng-loader``. The declarations follow eSpeak NG's public C header
``speak_lib.h`` (events, initialization options, parameters).

eSpeak NG carries state from one utterance to the next (the same text twice gives different samples), so ``speak`` runs
it in a separate process: the same arguments then always give the same samples. This file is that process's program
too, hence no slow imports here.
"""

import base64
import ctypes
import json
import os
import subprocess
import sys
from typing import NamedTuple, TextIO

SYNTHESIS_RATE = 22_050
"""Hz; the rate of eSpeak NG's own synthesizer."""

_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_PHONEME_EVENTS, _INITIALIZE_DONT_EXIT = 0x0001, 0x8000
_EVENT_LIST_TERMINATED, _EVENT_WORD, _EVENT_PHONEME = 0, 1, 7
_RATE, _PITCH, _RANGE = 1, 3, 4
_POSITION_CHARACTER, _CHARS_UTF8 = 1, 1
_RANDOM_SEED = 1
_STRESS_MARKS = "',%="


class EspeakError(RuntimeError):
    """eSpeak NG is missing, does not load, or refuses a voice; one sentence."""


class Utterance(NamedTuple):
    """Synthesized utterance.

    pcm: 16-bit little-endian mono samples at ``SYNTHESIS_RATE``.
    phones: (first sample, eSpeak NG mnemonic without stress marks, "sil" for a pause), in order.
    words: (first sample, the word as spelled in the text), in order.
    """

    pcm: bytes
    phones: list[tuple[int, str]]
    words: list[tuple[int, str]]


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


def speak(voice: str, texts: list[str], rate: int = 175, pitch: int = 50, pitch_range: int = 50) -> list[Utterance]:
    """Synthesize texts with one voice, in a separate process.

    Args:
        voice: language and variant, such as "en-us+f3".
        texts: of the utterances.
        rate: words per minute, 80 to 450.
        pitch: 0 to 100.
        pitch_range: 0 (monotone) to 100.

    Raises:
        EspeakError: the package is missing, the library does not load, or the voice is unknown.
    """
    job = {"voice": voice, "texts": texts, "rate": rate, "pitch": pitch, "pitch_range": pitch_range}
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(job), capture_output=True, text=True, check=False, encoding="utf-8"
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1]
        raise EspeakError(reason)
    return [
        Utterance(base64.b64decode(item["pcm"]), [tuple(p) for p in item["phones"]], [tuple(w) for w in item["words"]])
        for item in map(json.loads, done.stdout.splitlines())
    ]


def _load_library() -> ctypes.CDLL:
    try:
        import espeakng_loader
    except ImportError:
        raise EspeakError("espeakng-loader is missing; install it with `pip install espeakng-loader`") from None
    try:
        library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path()
    except (OSError, RuntimeError) as error:
        raise EspeakError(f"eSpeak NG of espeakng-loader does not load ({error}); reinstall that package") from error
    options = _INITIALIZE_PHONEME_EVENTS | _INITIALIZE_DONT_EXIT
    found = library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, data.encode(), options)
    if found != SYNTHESIS_RATE:
        raise EspeakError(f"eSpeak NG answers {found} to its initialization; reinstall espeakng-loader")
    if not hasattr(library, "espeak_ng_SetRandSeed"):
        raise EspeakError("eSpeak NG of espeakng-loader is older than 1.52; upgrade espeakng-loader to 0.2 or later")
    library.espeak_ng_SetRandSeed(ctypes.c_long(_RANDOM_SEED))  # else breath noise and the like follow the clock
    return library


def _serve(job: dict, out: TextIO) -> None:
    """Synthesize a job's texts and write each to ``out`` as a line of JSON."""
    library = _load_library()
    if library.espeak_SetVoiceByName(job["voice"].encode()) != 0:
        raise EspeakError(f"eSpeak NG has no voice {job['voice']!r}; name one that is in its data")
    for parameter, value in ((_RATE, job["rate"]), (_PITCH, job["pitch"]), (_RANGE, job["pitch_range"])):
        library.espeak_SetParameter(parameter, value, 0)
    pieces, phones, words, text = [], [], [], ""

    def collect(samples, num_samples, events):
        if samples and num_samples > 0:
            pieces.append(ctypes.string_at(samples, 2 * num_samples))
        index = 0
        while (event := events[index]).type != _EVENT_LIST_TERMINATED:
            if event.type == _EVENT_PHONEME:
                # The union's bytes, not its char array: ctypes would stop reading `id` as an array of 8 at a zero.
                mnemonic = ctypes.string_at(ctypes.addressof(event.id), 8).split(b"\0")[0].decode("utf-8", "replace")
                phones.append((event.sample, _plain(mnemonic)))
            elif event.type == _EVENT_WORD:
                start = event.text_position - 1
                words.append((event.sample, text[start : start + event.length]))
            index += 1
        return 0

    callback = _Callback(collect)  # a variable keeps it alive: the library has only the pointer
    library.espeak_SetSynthCallback(callback)
    for text in job["texts"]:
        pieces, phones, words = [], [], []
        encoded = text.encode("utf-8") + b"\0"
        library.espeak_Synth(encoded, len(encoded), 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None)
        library.espeak_Synchronize()
        pcm = base64.b64encode(b"".join(pieces)).decode("ascii")
        print(json.dumps({"pcm": pcm, "phones": phones, "words": words}), file=out)


def _plain(mnemonic: str) -> str:
    """Return a mnemonic without its stress marks; "sil" for every kind of pause."""
    plain = mnemonic.lstrip(_STRESS_MARKS)
    return "sil" if plain.strip("_:!|") == "" else plain


if __name__ == "__main__":
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the library itself might print must not come between the lines
    try:
        _serve(json.load(sys.stdin), answer)
        answer.close()
    except EspeakError as problem:
        print(problem, file=sys.stderr)
        sys.exit(1)
