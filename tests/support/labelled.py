"""A labelled corpus of tones: the low ones are phones, the first of them the keyword, a high one the speaker."""

from pathlib import Path

import numpy as np
import soundfile

TONES = {"a": 300.0, "e": 900.0, "i": 2700.0}  # Hz
SEGMENT = 4800  # samples
FRAME, SHIFT = 400, 320  # samples, of the tiny models' frames


def write_labelled(root: Path, train: int = 16, valid: int = 8) -> Path:
    """``{train,valid}.{tsv,phn,keyword,speaker}``; the speakers of the two manifests differ."""
    rng = np.random.default_rng(0)
    for split, count, speakers in (("train", train, ["s1", "s2", "s3"]), ("valid", valid, ["s4", "s5"])):
        lines = {"tsv": [str(root / split)], "phn": [], "keyword": [], "speaker": []}
        (root / split).mkdir(parents=True)
        for number in range(count):
            speaker = speakers[number % len(speakers)]
            phones = [str(phone) for phone in rng.permutation(list(TONES))]
            samples = _speak(phones, int(speaker[1]), rng)
            name = f"{speaker}-{number}.wav"
            soundfile.write(root / split / name, samples, 16_000, subtype="FLOAT")
            centres = np.arange((len(samples) - FRAME) // SHIFT + 1) * SHIFT + FRAME // 2
            lines["tsv"].append(f"{name}\t{len(samples)}")
            lines["phn"].append(" ".join(phones[min(centre // SEGMENT, 2)] for centre in centres))
            lines["keyword"].append(phones[0])
            lines["speaker"].append(speaker)
        for extension, content in lines.items():
            (root / f"{split}.{extension}").write_text("".join(f"{line}\n" for line in content))
    return root


def _speak(phones: list[str], speaker: int, rng: np.random.Generator) -> np.ndarray:
    """Segments of tones and, for the speaker, one far above them; the utterance ends a little after the last."""
    time = np.arange(3 * SEGMENT + int(rng.integers(0, 500))) / 16_000
    pitches = np.repeat([TONES[phone] for phone in phones], SEGMENT)
    pitches = np.pad(pitches, (0, len(time) - len(pitches)), mode="edge")
    samples = np.sin(2 * np.pi * pitches * time) + 0.3 * np.sin(2 * np.pi * (4000 + 600 * speaker) * time)
    return (0.1 * (samples + 0.1 * rng.standard_normal(len(time)))).astype(np.float32)
