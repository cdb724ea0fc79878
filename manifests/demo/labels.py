"""The demo corpus's label files: plain text, one item per line, fields separated by tabs, ``#`` starts a comment.

    labels/phones.txt      utterance  start  end  phone    every sample of an utterance is in exactly one phone
    labels/words.txt       utterance  start  end  word     a word ends where the next one, or a pause, begins
    labels/utterances.txt  utterance  subset  speaker  num_samples

``start`` and ``end`` count samples of 16 kHz audio, ``end`` excluded. Phones are eSpeak NG's mnemonics without stress,
a few rare variants merged (``FOLDED``), ``sil`` for pauses and the silence at both ends.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fairseq_star.errors import StarError

SILENCE = "sil"
FOLDED = {
    "@2": "@", "@-": "@", "a#": "@", "I2": "I", "I#": "I", "O2": "O:", "O@": "O:", "o@": "O:", "aa": "a", "aI2": "aI",
    "aI3": "aI@", "i@3": "i@", "VR": "3:", "IR": "3:", "@5": "U", "t#": "t", "t[": "t", "t2": "t", "r-": "r",
    "w#": "w", ";": "j",
}  # fmt: skip


class Segment(NamedTuple):
    """Samples [start, end) of a phone or a word."""

    start: int
    end: int
    label: str


class UtteranceInfo(NamedTuple):
    """An utterance's part of the corpus (train or dev), speaker and length."""

    subset: str
    speaker: str
    num_samples: int


def phone_segments(marks: Sequence[tuple[int, str]], num_samples: int) -> list[Segment]:
    """Convert (first sample, mnemonic) marks to segments that cover [0, num_samples): folded, adjacent ``sil``
    merged, empty ones dropped, silence before the first mark."""
    starts = [(0, SILENCE), *((start, FOLDED.get(phone, phone)) for start, phone in marks)]
    segments: list[Segment] = []
    for index, (start, phone) in enumerate(starts):
        end = min(starts[index + 1][0] if index + 1 < len(starts) else num_samples, num_samples)
        if segments and phone == SILENCE == segments[-1].label:
            segments[-1] = segments[-1]._replace(end=end)
        elif end > start:
            segments.append(Segment(start, end, phone))
    return segments


def word_segments(marks: Sequence[tuple[int, str]], phones: Sequence[Segment]) -> list[Segment]:
    """Convert (first sample, word) marks to segments, each up to the next word or the next pause."""
    segments = []
    pauses = [phone.start for phone in phones if phone.label == SILENCE]
    for index, (start, word) in enumerate(marks):
        ends = [pause for pause in pauses if pause > start]
        ends += [marks[index + 1][0]] if index + 1 < len(marks) else []
        segments.append(Segment(start, min(ends, default=phones[-1].end), word.upper()))
    return [segment for segment in segments if segment.end > segment.start]


def frame_labels(
    segments: Sequence[Segment], num_frames: int, downsample_rate: int = 320, receptive_field: int = 400
) -> list[str]:
    """Return the label at each frame's middle; frame t is ``receptive_field`` samples from ``t * downsample_rate``."""
    centres = np.arange(num_frames) * downsample_rate + receptive_field // 2
    indices = np.searchsorted([segment.end for segment in segments], centres, side="right")
    return [segments[index].label for index in np.minimum(indices, len(segments) - 1)]


def write_segments(path: str | os.PathLike, what: str, segments: dict[str, list[Segment]]) -> None:
    """Write ``phones.txt`` or ``words.txt``: segments by utterance, sorted."""
    lines = [f"# utterance\tstart\tend\t{what}\n"]
    for utterance in sorted(segments):
        lines += [f"{utterance}\t{start}\t{end}\t{label}\n" for start, end, label in segments[utterance]]
    Path(path).write_text("".join(lines), encoding="utf-8")


def read_segments(path: str | os.PathLike) -> dict[str, list[Segment]]:
    """Read ``phones.txt`` or ``words.txt``: utterance to its segments in order of time.

    Raises:
        StarError: the file is missing, or a line does not have four fields; names file and line.
    """
    segments: dict[str, list[Segment]] = {}
    for utterance, start, end, label in _read_fields(path, "utterance start end label", numbers=(1, 2)):
        segments.setdefault(utterance, []).append(Segment(int(start), int(end), label))
    return segments


def read_utterances(path: str | os.PathLike) -> dict[str, UtteranceInfo]:
    """Read ``utterances.txt``: utterance to its subset, speaker and length, in the file's order.

    Raises:
        StarError: the file is missing, or a line does not have four fields; names file and line.
    """
    return {
        utterance: UtteranceInfo(subset, speaker, int(num_samples))
        for utterance, subset, speaker, num_samples in _read_fields(
            path, "utterance subset speaker num_samples", numbers=(3,)
        )
    }


def _read_fields(path: str | os.PathLike, names: str, numbers: Sequence[int]) -> Iterator[list[str]]:
    """Yield each line's fields without comments, after checking their number and the integers among them."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise StarError(f"{path}: cannot be read ({error.strerror}); make it with manifests/demo/corpus.py") from error
    for number, line in enumerate(lines, start=1):
        fields = line.split("\t")
        if line.startswith("#"):
            continue
        if len(fields) != len(names.split()) or not all(fields[index].isdecimal() for index in numbers):
            expected = "<TAB>".join(names.split())
            raise StarError(f"{path}:{number}: expected '{expected}', found {line!r}; create it again")
        yield fields
