"""Utterances that slicing is computed from: a manifest's usable ones, in an order chosen by seed."""

import os
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from soundfile import SoundFileError
from torch import Tensor

from fairseq_star.audio.file import open_audio
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.errors import StarError
from fairseq_star.manifest import SAMPLE_RATE, read_manifest

UTTERANCES = 64
SECONDS = 5.0  # at most, from the start of an utterance
SHORTEST = 0.5  # s
SILENCE = 1e-4  # peak of a file without speech: -80 dB of full scale
TRIES = 10  # files opened for each utterance wanted, at most


@dataclass
class Sample:
    """Audio of some utterances of a manifest."""

    sources: list[Tensor]  # each 1-D, normalized where the model's audio is
    names: list[str]  # their files' paths in the manifest
    skipped: list[str]  # files that cannot be used, each with its reason


def draw_sample(
    manifest: str | os.PathLike,
    *,
    count: int = UTTERANCES,
    seed: int,
    normalize: bool,
    sample_rate: int = SAMPLE_RATE,
    seconds: float = SECONDS,
) -> Sample:
    """Read ``count`` utterances of a manifest, in an order that depends on the seed alone.

    Files that are unreadable, too short, silent or not finite are skipped for the next ones.

    Args:
        manifest: ``{split}.tsv``.
        count: utterances to read; all where there are fewer.
        normalize: scale each to zero mean and unit variance.
        sample_rate: Hz; files of other rates are skipped.
        seconds: most of each utterance.

    Raises:
        StarError: the manifest cannot be read, or none of its utterances can be used.
    """
    root, entries = read_manifest(manifest)
    sample = Sample([], [], [])
    for number in np.random.default_rng(seed).permutation(len(entries))[: TRIES * count]:
        name = entries[number].path
        source = _read(os.path.join(root, name), sample_rate, seconds)
        if isinstance(source, str):
            sample.skipped.append(f"{name}: {source}")
            continue
        sample.sources.append(F.layer_norm(source, source.shape) if normalize else source)
        sample.names.append(name)
        if len(sample.names) == count:
            break
    if not sample.sources:
        raise StarError(
            f"{os.fspath(manifest)}: none of the {len(sample.skipped)} files opened can be used to slice a "
            f"student ({sample.skipped[0]}); give other audio"
        )
    return sample


def draw_for(
    teacher: FrozenEncoder, manifest: str | os.PathLike, *, count: int, seed: int, seconds: float = SECONDS
) -> Sample:
    """Return :func:`draw_sample` with the teacher's sample rate and normalization."""
    audio = {"normalize": teacher.normalize, "sample_rate": teacher.sample_rate}
    return draw_sample(manifest, count=count, seed=seed, seconds=seconds, **audio)


def _read(path: str, sample_rate: int, seconds: float) -> Tensor | str:
    """Return the file's first ``seconds``, or the reason why it cannot be used."""
    try:
        with open_audio(path) as audio:
            if audio.samplerate != sample_rate:
                return f"is sampled at {audio.samplerate} Hz instead of {sample_rate}"
            if audio.channels != 1:
                return f"has {audio.channels} channels instead of one"
            samples = audio.read(round(seconds * sample_rate), dtype="float32")
    except (StarError, SoundFileError, OSError) as error:
        return f"cannot be read ({str(error).removeprefix(f'{path}: ')})"
    if not np.isfinite(samples).all():
        return "has values that are not finite"
    if len(samples) < SHORTEST * sample_rate:
        return f"is shorter than {SHORTEST:g} s"
    if np.abs(samples).max() < SILENCE:
        return "is silent"
    return torch.from_numpy(samples)
