"""Make noise and rooms for the demo corpus: manifests for ``task.noise_manifest`` and ``task.reverb_manifest``.

    python manifests/demo/noise.py OUT [--seed 0]

OUT/train.tsv (white and pink noise, mains hum, clicks), OUT/test.tsv (kinds not in training: brown noise,
pulsating engines, sweeps) and OUT/rooms.tsv (impulse responses: a direct sound, early reflections and noise that decays
within 0.2 to 0.6 s). All synthetic; the same seed gives the same audio.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from fairseq_star.errors import StarError
from fairseq_star.manifest import SAMPLE_RATE, ManifestEntry, write_manifest
from manifests.preparing import run_script

SECONDS = 20
LEVEL = 0.1  # root mean square
Generator = np.random.Generator


def main(arguments: list[str] | None = None) -> None:
    """Run the command line described above.

    Raises:
        StarError: OUT cannot be created.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(options.seed)
    for split, kinds in (("train", TRAIN), ("test", TEST), ("rooms", {f"room{n}": _room for n in range(6)})):
        folder = options.out / split
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StarError(f"{folder} cannot be made ({error.strerror}); name another OUT") from error
        entries = []
        for name, make in kinds.items():
            signal = make(rng)
            soundfile.write(folder / f"{name}.flac", signal, SAMPLE_RATE)
            entries.append(ManifestEntry(f"{name}.flac", len(signal)))
        write_manifest(options.out / f"{split}.tsv", folder.resolve(), entries)
        print(f"{options.out / split}.tsv: {len(entries)} files")


def _coloured(exponent: float) -> Callable[[Generator], np.ndarray]:
    """Return noise whose power falls with frequency to the power of ``exponent``: white 0, pink 1, brown 2."""

    def make(rng: Generator) -> np.ndarray:
        spectrum = np.fft.rfft(rng.standard_normal(SECONDS * SAMPLE_RATE))
        frequencies = np.fft.rfftfreq(SECONDS * SAMPLE_RATE, 1 / SAMPLE_RATE).clip(min=20)
        return _levelled(np.fft.irfft(spectrum / frequencies ** (exponent / 2)))

    return make


def _hum(rng: Generator) -> np.ndarray:
    time = np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE
    tones = sum(np.sin(2 * np.pi * 50 * n * time + rng.uniform(0, 6)) / n for n in range(1, 12))
    return _levelled(tones + 0.1 * rng.standard_normal(len(time)))


def _clicks(rng: Generator) -> np.ndarray:
    impulses = (rng.random(SECONDS * SAMPLE_RATE) < 20 / SAMPLE_RATE) * rng.standard_normal(SECONDS * SAMPLE_RATE)
    return _levelled(np.convolve(impulses, np.exp(-np.arange(400) / 60) * rng.standard_normal(400))[: len(impulses)])


def _engine(rng: Generator) -> np.ndarray:
    time = np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE
    return _levelled(_coloured(1.5)(rng) * (1.2 + np.sin(2 * np.pi * 11 * time) + np.sin(2 * np.pi * 0.4 * time)))


def _sweeps(rng: Generator) -> np.ndarray:
    time = np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE
    pitch = 700 + 500 * np.sin(2 * np.pi * 0.7 * time)  # a siren's
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    return _levelled(np.sin(phase) + 0.5 * np.sin(2 * phase) + 0.05 * rng.standard_normal(len(time)))


def _room(rng: Generator) -> np.ndarray:
    time = np.arange(int(0.8 * SAMPLE_RATE)) / SAMPLE_RATE
    response = 0.15 * rng.standard_normal(len(time)) * np.exp(-6.9 * time / rng.uniform(0.2, 0.6))
    response[: int(0.002 * SAMPLE_RATE)] = 0
    response[rng.integers(int(0.002 * SAMPLE_RATE), int(0.03 * SAMPLE_RATE), size=6)] += rng.uniform(-0.4, 0.4, size=6)
    response[0] = 0.9
    return response.clip(-1, 1)


def _levelled(signal: np.ndarray) -> np.ndarray:
    return (signal * (LEVEL / np.sqrt(np.mean(signal**2)))).clip(-1, 1)


TRAIN = {"white": _coloured(0), "pink": _coloured(1), "hum": _hum, "clicks": _clicks}
TEST = {"brown": _coloured(2), "engine": _engine, "sweeps": _sweeps}

if __name__ == "__main__":
    run_script(main)
