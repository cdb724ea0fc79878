"""Make a small keyword task of eSpeak NG voices in the layout of Google Speech Commands, as s3prl's task reads it.

    python manifests/demo/keywords.py OUT [--train-speakers 32] [--valid-speakers 8] [--test-speakers 12] [--seed 0]

OUT/train/<word>/<speaker>_nohash_<n>.wav of one second, ten keywords and ten other words, OUT/train/_background_noise_,
validation_list.txt, testing_list.txt, and OUT/test/<class>/ with _unknown_ and _silence_, as in the two archives of
Speech Commands v0.01. Words begin anywhere in the second, in noise 0 to 40 dB below them. No speaker is in two parts,
and no voice variant of the test's is in training. A speaker's name has the hash that assigns it to a part for readers
of Speech Commands. The same arguments give the same audio. Needs ``pip install "fairseq-star[demo]"``.
"""

import argparse
import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fairseq_star.errors import StarError
from fairseq_star.manifest import SAMPLE_RATE
from manifests.demo.corpus import recorded, resampled
from manifests.demo.espeak import EspeakError, speak
from manifests.demo.speakers import Speaker, make_speakers
from manifests.preparing import run_script

KEYWORDS = ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]
OTHER_WORDS = ["bed", "bird", "cat", "dog", "happy", "house", "nine", "seven", "tree", "wow"]
TAKES = 2  # of each word, of each speaker, at another speed and pitch
NOISE_FILES, NOISE_SECONDS = 6, 20
PARTS = {"valid": (0, 10), "test": (10, 20), "train": (20, 100)}  # per cent of the speakers' hashes, [from, to)
LOWEST_SNR = 0.0  # dB


def main(arguments: list[str] | None = None) -> None:
    """Run the command line described above.

    Raises:
        StarError: an option out of range, OUT is not empty, or eSpeak NG is missing.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make; new or empty")
    parser.add_argument("--train-speakers", type=int, default=32, help="default %(default)s")
    parser.add_argument("--valid-speakers", type=int, default=8, help="default %(default)s")
    parser.add_argument("--test-speakers", type=int, default=12, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="decides voices and noise (default %(default)s)")
    options = parser.parse_args(arguments)
    if options.seed < 0 or options.train_speakers < 1 or options.valid_speakers < 1:
        raise StarError("--seed must not be negative, and each part needs a speaker; correct the option")
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise StarError(f"{options.out}: is there already; name a folder that is new or empty")
    train = options.train_speakers + options.valid_speakers
    speakers = make_speakers(np.random.default_rng(options.seed), train, options.test_speakers)
    counts = {"train": options.train_speakers, "valid": options.valid_speakers, "test": options.test_speakers}
    parts = [part for part, count in counts.items() for _ in range(count)]
    # An incomplete corpus must not look like a complete one.
    partial = options.out.with_name(f".{options.out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _make(partial, list(zip(speakers, parts, strict=True)), options.seed)
        os.replace(partial, options.out)
    except EspeakError as error:
        raise StarError(f"demo keywords: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    parts = ", ".join(f"{count} speakers {part}" for part, count in counts.items())
    print(f"{options.out}: {len(list(options.out.rglob('*.wav')))} files, {parts}")


def _make(out: Path, speakers: list[tuple[Speaker, str]], seed: int) -> None:
    from tqdm import tqdm

    for word in [*KEYWORDS, *OTHER_WORDS]:
        (out / "train" / word).mkdir(parents=True)
    for word in [*KEYWORDS, "_unknown_", "_silence_"]:
        (out / "test" / word).mkdir(parents=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = pool.map(lambda pair: _make_speaker(out, *pair, seed), speakers)
        names = {part: [] for part in PARTS}
        for (_, part), paths in zip(speakers, tqdm(made, "speaking", len(speakers), unit="speaker"), strict=True):
            names[part] += paths
    for part, file in (("valid", "validation_list.txt"), ("test", "testing_list.txt")):
        (out / "train" / file).write_text("".join(f"{name}\n" for name in sorted(names[part])), encoding="utf-8")

    background = out / "train" / "_background_noise_"
    background.mkdir()
    rng = np.random.default_rng([seed, 0])
    for number in range(NOISE_FILES):
        _write(background / f"noise_{number}.wav", _noise(rng, NOISE_SECONDS))
    for number in range(TAKES * sum(part == "test" for _, part in speakers)):
        _write(out / "test" / "_silence_" / f"silence_{number}.wav", _noise(rng, 1))


def _make_speaker(out: Path, speaker: Speaker, part: str, seed: int) -> list[str]:
    """Write every word in every take, test speakers' also to the test archive; return the names in the lists."""
    rng = np.random.default_rng([seed, int(speaker.speaker)])
    name = _speaker_name(speaker, part)
    words = [*KEYWORDS, *OTHER_WORDS]
    paths = []
    for take in range(TAKES):
        rate, pitch = speaker.rate + int(rng.integers(-25, 26)), speaker.pitch + int(rng.integers(-8, 9))
        for word, utterance in zip(words, speak(speaker.voice, words, rate, pitch, speaker.pitch_range), strict=True):
            samples = _one_second(resampled(utterance), rng)
            paths.append(f"{word}/{name}_nohash_{take}.wav")
            _write(out / "train" / paths[-1], samples)
            if part == "test" and word in KEYWORDS:
                _write(out / "test" / paths[-1], samples)
            elif part == "test" and words.index(word) % 10 == int(speaker.speaker) % 10:  # as many as of a keyword
                _write(out / "test" / "_unknown_" / f"{word}_{name}_nohash_{take}.wav", samples)
    return paths


def _speaker_name(speaker: Speaker, part: str) -> str:
    """Return eight hexadecimal digits whose SHA-1, computed as in the README of Speech Commands, is in ``part``."""
    largest = 2**27 - 1
    first, last = PARTS[part]
    for attempt in range(10_000):
        name = hashlib.sha256(f"{speaker} {attempt}".encode()).hexdigest()[:8]
        share = int(hashlib.sha1(name.encode()).hexdigest(), 16) % (largest + 1) * 100 / largest
        if first <= share < last:
            return name
    raise AssertionError("no name in ten thousand falls into a tenth")


def _one_second(speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return one second of int16 with the word somewhere in it; a longer word loses its end."""
    loud = np.flatnonzero(np.abs(speech) > 0.01)
    speech = speech[loud[0] : loud[-1] + 1][:SAMPLE_RATE]
    lead = int(rng.integers(0, SAMPLE_RATE - len(speech) + 1))
    return recorded(np.pad(speech, (lead, SAMPLE_RATE - lead - len(speech))), rng, lowest_snr=LOWEST_SNR)


def _noise(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Return coloured int16 noise, as loud as that added to speech."""
    return recorded(rng.standard_normal(int(seconds * SAMPLE_RATE)) * 1e-3, rng, lowest_snr=LOWEST_SNR)


def _write(path: Path, samples: np.ndarray) -> None:
    import soundfile

    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")


if __name__ == "__main__":
    run_script(main)
