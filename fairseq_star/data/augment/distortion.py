"""Noise, reverberation, other speakers, band limits and gain: the student's audio, of the length of the clean one.

They are applied in the physical order: room, other speakers, noise, line, level. Every draw depends on seed, epoch and
    utterance alone. Nothing is resampled.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fairseq_star.audio.file import open_audio
from fairseq_star.data.augment.options import AugmentConfig
from fairseq_star.data.bad_audio import NOT_FINITE, all_finite
from fairseq_star.errors import StarError
from fairseq_star.manifest import read_manifest
from fairseq_star.runtime.torchaudio_import import import_torchaudio

MANIFESTS = ("noise_manifest", "reverb_manifest")
STREAM = 0x5EED  # separates these draws from the crops', which come from the same seed, epoch and utterance
SILENT, ROUNDING = 1e-12, 1e-10  # power: -120 dB of full scale; relative to that of a constant offset
RANGES = {"noise_snr": None, "babble_snr": None, "gain_db": None, "band_limit_hz": 0.0, "babble_utterances": 0.0}


@dataclass(frozen=True)
class Recordings:
    """Audio files of a manifest, read whole or in part."""

    option: str
    paths: Sequence[str]
    sizes: Sequence[int]  # samples

    @classmethod
    def of(cls, option: str, manifest: str) -> "Recordings":
        """Read a manifest; its files are not checked.

        Raises:
            StarError: it lists nothing.
        """
        try:
            root, entries = read_manifest(manifest)
        except StarError as error:
            raise StarError(f"{option}: {error}") from error
        return cls(option, [os.path.join(root, entry.path) for entry in entries], [n for _, n in entries])

    def piece(self, rng: np.random.Generator, num_samples: int) -> Tensor:
        """Return ``num_samples`` of a random file from a random offset; a shorter file is repeated."""
        number = int(rng.integers(len(self.paths)))
        start = int(rng.integers(max(self.sizes[number] - num_samples, 0) + 1))
        read = _read(self.paths[number], start, num_samples)
        return read.repeat(-(-num_samples // len(read)))[:num_samples]

    def drawn(self, seed: int) -> str:
        """Return the path that a generator of this seed draws first."""
        return self.paths[int(np.random.default_rng(seed).integers(len(self.paths)))]

    def whole(self, rng: np.random.Generator) -> Tensor:
        """Return a random file."""
        number = int(rng.integers(len(self.paths)))
        return _read(self.paths[number], 0, self.sizes[number])


def _read(path: str, start: int, num_samples: int) -> Tensor:
    with open_audio(path) as audio:
        audio.seek(start)
        samples = torch.from_numpy(audio.read(num_samples, dtype="float32"))
    if not len(samples):
        raise StarError(f"{path}: ends before sample {start}; restore it or write its manifest anew")
    if not all_finite(samples):
        raise StarError(f"{path}: {NOT_FINITE}")
    return samples


@dataclass(frozen=True)
class Augmentation:
    """Additive noise, reverberation, babble, band limits and gain, by ``task.noise_*``, ``reverb_*`` and so on.

    Args:
        cfg: the options.
        noise, responses: the files of the two manifests.
        sample_rate: Hz.
        seed: of the run.
    """

    cfg: AugmentConfig
    noise: Recordings | None
    responses: Recordings | None
    sample_rate: int
    seed: int

    @classmethod
    def of(cls, cfg: AugmentConfig, *, sample_rate: int, normalize: bool, seed: int) -> "Augmentation | None":
        """Build from the options; None where they change nothing.

        Raises:
            StarError: a value out of range, or a manifest that cannot be used.
        """
        for name in ("noise_prob", "reverb_prob", "babble_prob", "band_limit_prob", "gain_prob"):
            if not 0 <= getattr(cfg, name) <= 1:
                raise StarError(f"task.{name}={getattr(cfg, name)} must be from 0 to 1")
        for name, above in RANGES.items():
            _check_range(name, list(getattr(cfg, name)), above)
        if cfg.band_limit_prob and cfg.band_limit_hz[1] >= sample_rate / 2:
            raise StarError(f"task.band_limit_hz={list(cfg.band_limit_hz)} must stay below {sample_rate / 2:g} Hz")
        if cfg.gain_prob and normalize:
            raise StarError(
                "task.gain_prob: this teacher, and so its student, takes audio of unit variance, which has no loudness;"
                " leave it out"
            )
        manifests = {
            name: Recordings.of(f"task.{name}", getattr(cfg, name)) if getattr(cfg, name) else None
            for name in MANIFESTS
        }
        if not (any(manifests.values()) or cfg.babble_prob or cfg.band_limit_prob or cfg.gain_prob):
            return None
        import_torchaudio()  # a missing one is reported here, not in a data worker
        return cls(cfg, manifests["noise_manifest"], manifests["reverb_manifest"], sample_rate, seed)

    def apply(
        self,
        clean: Tensor,
        *,
        epoch: int,
        index: int,
        others: Callable[[int], Tensor],
        count: int,
        silent: list[str] | None = None,
    ) -> Tensor:
        """Augment ``clean`` (n samples): n samples.

        Args:
            index: the utterance's number, of ``count`` in its manifest.
            others: gives the samples of another utterance of the manifest by its number.
            silent: gets a sentence for each sound that was drawn and could not be added, since it, or ``clean``, is
                silent.
        """
        silent = [] if silent is None else silent
        functional, cfg = import_torchaudio().functional, self.cfg
        rng = np.random.default_rng((self.seed, epoch, index, STREAM))
        # All draws first, each whether it is used or not: switching one off leaves the others as they are.
        chances = rng.random(5)
        noise_seed, room_seed, babble_seed = rng.integers(2**62, size=3)
        noise_rng, room_rng, babble_rng = map(np.random.default_rng, (noise_seed, room_seed, babble_seed))
        cutoff, gain = rng.uniform(*cfg.band_limit_hz), rng.uniform(*cfg.gain_db)
        heard = clean
        if self.responses is not None and chances[0] < cfg.reverb_prob:
            heard = reverberate(heard, self.responses.whole(room_rng))
        if chances[1] < cfg.babble_prob and count > 1:
            babble = self._babble(babble_rng, len(clean), index, others, count)
            before, heard = heard, mix(heard, babble, cfg.babble_snr, babble_rng)
            if heard is before:
                silent.append("the other utterances (task.babble_prob) are silent, or it is")
        if self.noise is not None and chances[2] < cfg.noise_prob:
            before, heard = heard, mix(heard, self.noise.piece(noise_rng, len(clean)), cfg.noise_snr, noise_rng)
            if heard is before:
                silent.append(f"the piece of {self.noise.drawn(noise_seed)} (task.noise_manifest) is silent, or it is")
        if chances[3] < cfg.band_limit_prob:
            heard = functional.lowpass_biquad(heard, self.sample_rate, cutoff)
        if chances[4] < cfg.gain_prob:
            heard = functional.gain(heard, gain)
        return heard

    def _babble(
        self, rng: np.random.Generator, num_samples: int, index: int, others: Callable[[int], Tensor], count: int
    ) -> Tensor:
        """Return the sum of several other utterances, each of the same power, from random offsets."""
        total = torch.zeros(num_samples)
        fewest, most = self.cfg.babble_utterances
        for number in rng.integers(count - 1, size=rng.integers(fewest, most + 1)):
            samples = others(int(number + (number >= index)))
            samples = samples / samples.square().mean().sqrt().clamp_min(1e-8)
            start = int(rng.integers(len(samples)))
            total += samples.roll(-start).repeat(-(-num_samples // len(samples)))[:num_samples]
        return total


def mix(speech: Tensor, noise: Tensor, snr_range: Sequence[float], rng: np.random.Generator) -> Tensor:
    """Add ``noise`` to ``speech`` (n samples each) at an SNR in dB drawn from the range.

    Powers are variances: a constant offset, as of cheap sound cards, is not audible, and the noise's is not added.
    Where either side is silent the ratio is undefined, and ``speech`` itself is returned.
    """
    snr = rng.uniform(*snr_range)
    powers = [_power(samples) for samples in (speech, noise)]
    if not all(powers):
        return speech
    gain = math.sqrt(powers[0] / powers[1]) * 10 ** (-snr / 20)
    varying = noise.double() - noise.double().mean()  # in float32 a large offset's rounding error would be left
    return speech + (gain * varying).to(speech)


def _power(samples: Tensor) -> float:
    """Return the mean square without the mean; 0 where only rounding errors are left."""
    power, offset = float(samples.var(correction=0)), float(samples.mean()) ** 2
    return power if power > max(SILENT, ROUNDING * offset) else 0.0


def reverberate(speech: Tensor, response: Tensor) -> Tensor:
    """Convolve ``speech`` (n samples) with a room impulse response: n samples of the same energy, not delayed (the
    response's largest sample, the direct sound, is at time 0), so that the teacher's frames stay aligned."""
    direct = int(response.abs().argmax())
    heard = import_torchaudio().functional.fftconvolve(speech, response)[direct : direct + len(speech)]
    energy = heard.square().sum()
    return heard * (speech.square().sum() / energy).sqrt() if energy > 0 else speech


def _check_range(name: str, values: list[float], above: float | None) -> None:
    fits = len(values) == 2 and all(map(math.isfinite, values)) and values[0] <= values[1]
    if not fits or (above is not None and values[0] <= above):
        least = "" if above is None else f", above {above:g}"
        raise StarError(f"task.{name}={values} must be two rising numbers{least}, such as [1,4]")
