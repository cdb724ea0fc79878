"""Speech after a pause: the phones that a streaming student recognizes, live and in whole utterances.

    python -m benchmarks.silence CHECKPOINT... --out FOLDER [--norm-context-frames K] [--data demo/corpus]

One linear classifier a student and a way of running it (live in chunks of 16 frames; the whole utterance at once)
learns phones from the last layer's frames of utterances that begin a stream. It is tested on others, which begin one
too, or follow a pause: zeros, hiss at -80 or -60 dBFS, chords, other speakers. Pauses are whole chunks, so that frames
lie as in a fresh stream. ``--norm-context-frames`` runs the same weights with that value of the option instead.
Writes FOLDER/silence-DATE.md and FOLDER/silence-DATE.json.
"""

import argparse
import copy
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.nn.functional as F

from benchmarks.measure import ROOT, environment, heading
from fairseq_star.deploy.streaming import Streams
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.encoder.modules import SpeechEncoder
from fairseq_star.formats import load_student
from fairseq_star.formats.student import Student, student_of
from fairseq_star.manifest import read_manifest, write_lines
from manifests.preparing import run_script

RATE, CHUNK = 16_000, 16
HOP = CHUNK * 320
Utterance = tuple[np.ndarray, list[str]]
"""Audio, and the phone of each of its frames."""
Features = Callable[[np.ndarray, str], torch.Tensor]
"""The last layer's frames of an utterance after the pause of that name."""


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="streaming students, such as of each seed")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--norm-context-frames", type=int, metavar="K", help="instead of the checkpoint's own")
    parser.add_argument("--data", type=Path, default=ROOT / "demo" / "corpus", metavar="FOLDER")
    parser.add_argument("--train-utterances", type=int, default=60)
    parser.add_argument("--test-utterances", type=int, default=32)
    parser.add_argument("--seconds", type=int, nargs="+", default=[10, 60, 300], help="of zeros, live")
    options = parser.parse_args(arguments)
    train = read_utterances(options.data, "train", options.train_utterances)
    test = read_utterances(options.data, "valid", options.test_utterances)
    before = pauses([audio for audio, _ in train], options.seconds)
    found = {}
    for path in options.checkpoints:
        student = with_norm_context(load_student(path), options.norm_context_frames)
        for way, features in (("live", live(student, before)), ("whole", whole(student, before))):
            for name, accuracy in accuracies(features, before, train, test, way).items():
                found.setdefault(way, {}).setdefault(name, []).append(accuracy)
                print(f"{path} {way} {name}: {accuracy:.1f}", flush=True)
    about = environment("cpu", shlex.join(["python", "-m", "benchmarks.silence", *(arguments or sys.argv[1:])]))
    lines = ["| | " + " | ".join(found) + " |", "|---|" + "--:|" * len(found)]
    for name in before:
        cells = (" / ".join(f"{value:.1f}" for value in found[way].get(name, [])) or "–" for way in found)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    stem = options.out / f"silence-{date.today()}"
    unit = "Phones, % of test frames, a number a student."
    text = "\n".join([*heading("Speech after a pause", about), "", unit, "", *lines, ""])
    write_lines(stem.with_suffix(".md"), [text])
    write_lines(stem.with_suffix(".json"), [json.dumps({"environment": about, "phones": found}, indent=1)])
    print(text)


def with_norm_context(student: Student, frames: int | None) -> Student:
    """Return the same weights with another ``norm_context_frames``; as they are when None."""
    if frames is None:
        return student
    model = SpeechEncoder(replace(student.config, norm_context_frames=frames))
    model.load_state_dict(student.weights())
    encoder = FrozenEncoder(model, sample_rate=student.sample_rate, normalize=student.normalize)
    return student_of(encoder, dropouts=student.dropouts, name=student.name, origin=student.origin)


def read_utterances(data: Path, split: str, count: int) -> list[Utterance]:
    """Return ``count`` utterances at even distances in a manifest that has labels of each frame beside it."""
    root, entries = read_manifest(data / f"{split}.tsv")
    labels = (data / f"{split}.phn").read_text(encoding="utf-8").splitlines()
    pairs = list(zip(entries, labels, strict=True))[:: max(1, len(entries) // count)][:count]
    return [(soundfile.read(Path(root) / entry.path, dtype="float32")[0], phones.split()) for entry, phones in pairs]


def pauses(speech: list[np.ndarray], seconds: list[int]) -> dict[str, np.ndarray]:
    """Return what comes before an utterance, by name: samples of whole chunks."""
    rng = np.random.default_rng(0)
    found = {"a fresh stream": np.zeros(0)}
    found |= {f"{length} s of zeros": np.zeros(length * RATE) for length in seconds}
    found |= {
        f"10 s of hiss at {level} dBFS": 10 ** (level / 20) * rng.standard_normal(10 * RATE) for level in (-80, -60)
    }
    found |= {"10 s of chords": chords(10, rng), "10 s of another speaker": np.concatenate(speech)[: 10 * RATE]}
    return {name: samples[: len(samples) // HOP * HOP].astype(np.float32) for name, samples in found.items()}


def chords(seconds: int, rng: np.random.Generator) -> np.ndarray:
    """Return plucked notes with harmonics, four a second, peaking at 0.3."""
    time = np.arange(seconds * RATE) / RATE
    total = np.zeros_like(time)
    for start in np.arange(0, seconds, 0.25):
        since = time - start
        note = sum(np.sin(2 * np.pi * 220 * 2 ** (rng.integers(24) / 12) * since * k) / k for k in range(1, 6))
        total += note * np.exp(-4 * np.clip(since, 0, None)) * (since >= 0)
    return 0.3 * total / np.abs(total).max()


def live(student: Student, before: dict[str, np.ndarray]) -> Features:
    """Return what a stream in chunks gives; each pause is processed once."""
    streams: dict[str, Streams] = {}

    def features(audio: np.ndarray, pause: str) -> torch.Tensor:
        if pause not in streams:
            streams[pause] = Streams.of(student, chunk_frames=CHUNK)
            for piece in np.array_split(before[pause], len(before[pause]) // (10 * RATE) + 1):
                streams[pause].feed([piece])
        stream = copy.deepcopy(streams[pause], {id(streams[pause].step): streams[pause].step})
        return torch.cat(stream.feed([audio]) + stream.flush(), dim=1)[-1]

    return features


def whole(student: Student, before: dict[str, np.ndarray]) -> Features:
    """Return what the student gives of pause and utterance at once."""

    @torch.no_grad()
    def features(audio: np.ndarray, pause: str) -> torch.Tensor:
        student.use_chunks(0)
        return student.hidden_states([np.concatenate([before[pause], audio])], RATE)[0][-1]

    return features


def accuracies(
    features: Features, before: dict[str, np.ndarray], train: list[Utterance], test: list[Utterance], way: str
) -> dict[str, float]:
    """Return the share of phones recognized after each pause, in %; of whole utterances after at most 60 s."""
    fresh = next(iter(before))
    names = sorted({phone for _, phones in train for phone in phones})
    inputs = torch.cat([features(audio, fresh)[-len(phones) :] for audio, phones in train])
    targets = torch.tensor([names.index(phone) for _, phones in train for phone in phones])
    mean, deviation = inputs.mean(0), inputs.std(0) + 1e-5
    torch.manual_seed(0)
    head = torch.nn.Linear(inputs.size(1), len(names))
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(head((inputs - mean) / deviation), targets).backward()
        optimizer.step()
    wanted = [name for name, samples in before.items() if way == "live" or len(samples) <= 60 * RATE]
    found = {}
    for name in wanted:
        right, total = 0, 0
        for audio, phones in test:
            states = features(audio, name)[-len(phones) :]
            guesses = head((states - mean) / deviation).argmax(1).tolist()
            right += sum(names[guess] == phone for guess, phone in zip(guesses, phones, strict=True))
            total += len(phones)
        found[name] = 100 * right / total
    return found


if __name__ == "__main__":
    run_script(main)
