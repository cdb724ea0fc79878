"""``diarization.py REFERENCE.rttm PREDICTED.rttm ...``: the diarization error rate of each, in %, as JSON.

No collar, overlaps scored, from the first to the last moment of speech in either: as dscore, and with it s3prl's
``diarization/score.sh``. The mathematics is pyannote.metrics'.
"""

import json
import sys
from pathlib import Path

from pyannote.core import Annotation, Segment
from pyannote.metrics.diarization import DiarizationErrorRate


def read(path: str) -> dict[str, Annotation]:
    """Read an RTTM: recording -> speakers over time."""
    found: dict[str, Annotation] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines()):
        kind, recording, _, start, length, _, _, speaker, *_ = line.split()
        if kind == "SPEAKER":
            when = Segment(float(start), float(start) + float(length))
            found.setdefault(recording, Annotation())[when, number] = speaker
    return found


def error_rate(reference: dict[str, Annotation], predicted: dict[str, Annotation]) -> float:
    """Return the error rate over all recordings of the reference, in %."""
    metric = DiarizationErrorRate(collar=0.0, skip_overlap=False)
    for recording, truth in reference.items():
        guess = predicted.get(recording, Annotation())
        metric(truth, guess, uem=(truth.get_timeline() | guess.get_timeline()).extent())
    return 100 * abs(metric)


if __name__ == "__main__":
    truths = read(sys.argv[1])
    print(json.dumps({path: error_rate(truths, read(path)) for path in sys.argv[2:]}))
