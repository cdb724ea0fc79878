"""Make the demo corpus: English speech of eSpeak NG voices with phone, word and speaker labels, and its manifests.

    python manifests/demo/corpus.py OUT [--minutes 50] [--seed 0]

OUT/{train,dev}/<speaker>/<chapter>/*.flac and *.trans.txt as in LibriSpeech, SPEAKERS.TXT, labels/ (labels.py),
train.tsv, valid.tsv, and the labels of ``fairseq-star probe`` (probe.py). No dev speaker's voice variant occurs in
train. The same arguments give the same audio, byte for byte (with the same versions of espeakng-loader, torchaudio and
libsndfile). Needs ``pip install "fairseq-star[demo]"``.
"""

import argparse
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fairseq_star.errors import StarError
from fairseq_star.manifest import SAMPLE_RATE, ManifestEntry, write_manifest
from fairseq_star.runtime.torchaudio_import import import_torchaudio
from manifests.demo.espeak import SYNTHESIS_RATE, EspeakError, Utterance, speak
from manifests.demo.labels import Segment, phone_segments, word_segments, write_segments
from manifests.demo.probe import write_probe_labels
from manifests.demo.sentences import make_sentence, transcript
from manifests.demo.speakers import Speaker, make_speakers
from manifests.preparing import run_script

DEV_SHARE = 0.15
SHORTEST, LONGEST = 1.5, 13.0  # s
CHAPTER = "1"


class _Made(NamedTuple):
    utterance: str
    speaker: Speaker
    path: str
    text: str
    num_samples: int
    phones: list[Segment]
    words: list[Segment]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line described above.

    Raises:
        StarError: an option out of range, OUT is not empty, or eSpeak NG is missing.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make; new, empty, or an earlier demo corpus")
    parser.add_argument("--minutes", type=float, default=50.0, help="of audio in all (default %(default)s)")
    parser.add_argument("--train-speakers", type=int, default=48, help="default %(default)s")
    parser.add_argument("--dev-speakers", type=int, default=12, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="decides voices, texts, noise (default %(default)s)")
    options = parser.parse_args(arguments)
    if not options.minutes > 0 or options.seed < 0:
        raise StarError("--minutes must be above 0 and --seed not negative; correct the option")
    settings = {name: getattr(options, name) for name in ("minutes", "train_speakers", "dev_speakers", "seed")}
    if _is_made(options.out, settings):
        write_probe_labels(options.out)  # one that an earlier version made lacks them
        print(f"{options.out}: is already there with these settings")
        return
    speakers = make_speakers(np.random.default_rng(options.seed), options.train_speakers, options.dev_speakers)
    _mark(options.out, settings, complete=False)
    made = _make_all(options.out, speakers, options.minutes * 60, options.seed)
    _write_texts(options.out, speakers, made)
    write_probe_labels(options.out)
    _mark(options.out, settings, complete=True)
    minutes = {"train": 0.0, "dev": 0.0}
    for one in made:
        minutes[one.speaker.subset] += one.num_samples / SAMPLE_RATE / 60
    print(f"{options.out}: {len(made)} utterances, {minutes['train']:.1f} min train, {minutes['dev']:.1f} min dev")


def _is_made(out: Path, settings: dict) -> bool:
    """Return True if OUT is this corpus, complete; remove an incomplete one."""
    marker = out / "corpus.json"
    if not marker.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise StarError(f"{out}: is there and is no demo corpus; name a folder that is new or empty")
        return False
    found = json.loads(marker.read_text(encoding="utf-8"))
    if not found.pop("complete", False):
        for part in ("train", "dev", "labels", "keyword"):
            shutil.rmtree(out / part, ignore_errors=True)
        return False
    if found != settings:
        raise StarError(f"{out}: is a demo corpus of other settings ({found}); remove it or name another folder")
    return True


def _mark(out: Path, settings: dict, complete: bool) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**settings, "complete": complete}, indent=1)
    (out / "corpus.json").write_text(text + "\n", encoding="utf-8")


def _make_all(out: Path, speakers: list[Speaker], seconds: float, seed: int) -> list[_Made]:
    import torch
    from tqdm import tqdm

    num_dev = sum(speaker.subset == "dev" for speaker in speakers)
    share = {"dev": seconds * DEV_SHARE / num_dev, "train": seconds * (1 - DEV_SHARE) / (len(speakers) - num_dev)}
    # Speakers are distributed over threads, so torch's own would only slow each other down.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            results = pool.map(lambda speaker: _make_speaker(out, speaker, share[speaker.subset], seed), speakers)
            return [made for of_one in tqdm(results, "speaking", len(speakers), unit="speaker") for made in of_one]
    except EspeakError as error:
        raise StarError(f"demo corpus: {error}") from error
    finally:
        torch.set_num_threads(num_threads)


def _make_speaker(out: Path, speaker: Speaker, seconds: float, seed: int) -> list[_Made]:
    """Write one speaker's utterances as FLAC until ``seconds`` are reached."""
    import soundfile

    rng = np.random.default_rng([seed, int(speaker.speaker)])
    # Clauses of 3 to 12 words make 2 to 12 s; a third more than needed is spoken, since lengths are not known before.
    texts = [make_sentence(rng, int(rng.integers(3, 24))) for _ in range(int(seconds / 6 * 1.33) + 3)]
    folder = out / speaker.subset / speaker.speaker / CHAPTER
    folder.mkdir(parents=True, exist_ok=True)
    made: list[_Made] = []
    spoken = speak(speaker.voice, texts, speaker.rate, speaker.pitch, speaker.pitch_range)
    for text, utterance in zip(texts, spoken, strict=True):
        if sum(m.num_samples for m in made) >= seconds * SAMPLE_RATE:
            break
        samples, phones, words = _record(utterance, rng)
        if not SHORTEST * SAMPLE_RATE <= len(samples) <= LONGEST * SAMPLE_RATE:
            continue
        name = f"{speaker.speaker}-{CHAPTER}-{len(made):04d}"
        soundfile.write(folder / f"{name}.flac", samples, SAMPLE_RATE, subtype="PCM_16")
        path = f"{speaker.subset}/{speaker.speaker}/{CHAPTER}/{name}.flac"
        made.append(_Made(name, speaker, path, transcript(text), len(samples), phones, words))
    lines = [f"{m.utterance} {m.text}\n" for m in made]
    (folder / f"{speaker.speaker}-{CHAPTER}.trans.txt").write_text("".join(lines), encoding="utf-8")
    return made


def _record(utterance: Utterance, rng: np.random.Generator) -> tuple[np.ndarray, list[Segment], list[Segment]]:
    """Synthesize an utterance with silence at both ends and a microphone's noise.

    Returns:
        int16 samples, phone segments, word segments.
    """
    lead, tail = (int(rng.uniform(0.05, 0.3) * SAMPLE_RATE) for _ in range(2))
    samples = recorded(np.pad(resampled(utterance), (lead, tail)), rng)

    def moved(marks: list[tuple[int, str]]) -> list[tuple[int, str]]:
        return [(lead + round(start * SAMPLE_RATE / SYNTHESIS_RATE), label) for start, label in marks]

    phones = phone_segments(moved(utterance.phones), len(samples))
    return samples, phones, word_segments(moved(utterance.words), phones)


def resampled(utterance: Utterance) -> np.ndarray:
    """Return the synthesized speech as float32 samples at 16 kHz, between -1 and 1."""
    import torch

    speech = np.frombuffer(utterance.pcm, dtype="<i2").astype(np.float32) / 2**15
    return import_torchaudio().functional.resample(torch.from_numpy(speech), SYNTHESIS_RATE, SAMPLE_RATE).numpy()


def recorded(clean: np.ndarray, rng: np.random.Generator, lowest_snr: float = 15.0) -> np.ndarray:
    """Add a microphone's tilt and coloured noise ``lowest_snr`` to 40 dB below, at -32 to -18 dBFS."""
    clean = _shape(clean, rng.uniform(-0.25, 0.25))
    noise = _shape(rng.standard_normal(len(clean)), rng.uniform(-1.0, 0.0))
    level, snr = rng.uniform(-32, -18), rng.uniform(lowest_snr, 40)
    clean *= 10 ** (level / 20) / max(_rms(clean), 1e-8)
    noise *= 10 ** ((level - snr) / 20) / max(_rms(noise), 1e-8)
    return np.clip(np.round((clean + noise) * 2**15), -(2**15), 2**15 - 1).astype(np.int16)


def _shape(samples: np.ndarray, exponent: float) -> np.ndarray:
    """Tilt a spectrum: amplitude times (f / 1 kHz) ** exponent, flat below 60 Hz."""
    size = 1 << len(samples).bit_length()  # a power of two: ten times as quick as most lengths
    frequency = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 60.0)
    return np.fft.irfft(np.fft.rfft(samples, size) * (frequency / 1000) ** exponent, size)[: len(samples)]


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(samples**2)))


def _write_texts(out: Path, speakers: list[Speaker], made: list[_Made]) -> None:
    (out / "labels").mkdir(exist_ok=True)
    write_segments(out / "labels" / "phones.txt", "phone", {m.utterance: m.phones for m in made})
    write_segments(out / "labels" / "words.txt", "word", {m.utterance: m.words for m in made})
    lines = ["# utterance\tsubset\tspeaker\tnum_samples\n"]
    lines += [f"{m.utterance}\t{m.speaker.subset}\t{m.speaker.speaker}\t{m.num_samples}\n" for m in made]
    (out / "labels" / "utterances.txt").write_text("".join(lines), encoding="utf-8")
    lines = [";ID  |SEX| SUBSET           |MINUTES| NAME\n"]
    for s in speakers:
        minutes = sum(m.num_samples for m in made if m.speaker == s) / SAMPLE_RATE / 60
        about = f"eSpeak NG {s.voice}, {s.rate} words/min, pitch {s.pitch}, range {s.pitch_range}"
        lines.append(f"{s.speaker} | {s.sex} | {s.subset:<16} | {minutes:5.2f} | {about}\n")
    (out / "SPEAKERS.TXT").write_text("".join(lines), encoding="utf-8")
    for split, subset in (("train", "train"), ("valid", "dev")):
        entries = [ManifestEntry(m.path, m.num_samples) for m in made if m.speaker.subset == subset]
        write_manifest(out / f"{split}.tsv", out.resolve(), entries)


if __name__ == "__main__":
    run_script(main)
