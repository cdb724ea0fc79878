"""The utterances that slicing is computed from: some of a manifest's, by seed, one usable after the other."""

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
SECONDS = 5.0  # of an utterance, its first ones
SHORTEST = 0.5  # s
SILENCE = 1e-4  # greatest sample of what holds no speech: -80 dB of full scale
TRIES = 10  # times as many files as utterances are looked into before there are too few


@dataclass
class Sample:
    """Audio of a few utterances of a manifest."""

    sources: list[Tensor]  # each 1-D, normalized where the model's audio is
    names: list[str]  # of their files, as the manifest has them
    skipped: list[str]  # files that were not used, each with its reason


def draw_sample(
    manifest: str | os.PathLike,
    *,
    count: int = UTTERANCES,
    seed: int,
    normalize: bool,
    sample_rate: int = SAMPLE_RATE,
    seconds: float = SECONDS,
) -> Sample:
    """Read ``count`` utterances of a manifest, in an order that the seed alone decides.

    Unreadable, too short and silent files, and those with values that are not finite, are passed over for the next.

    Args:
        manifest: ``{split}.tsv``.
        count: utterances wanted; all where there are fewer.
        seed: of the order.
        normalize: each to zero mean and unit variance.
        sample_rate: Hz, that all must have.
        seconds: of each at most.

    Raises:
        StarError: the manifest is none, or not one of its utterances can be used.
    """
    root, entries = read_manifest(manifest)
    sample = Sample([], [], [])
    for number in np.random.default_rng(seed).permutation(len(entries))[: TRIES * count]:
        name = entries[number].path
        found = _read(os.path.join(root, name), sample_rate, seconds)
        if isinstance(found, str):
            sample.skipped.append(f"{name}: {found}")
            continue
        sample.sources.append(F.layer_norm(found, found.shape) if normalize else found)
        sample.names.append(name)
        if len(sample.names) == count:
            break
    if not sample.sources:
        raise StarError(
            f"{os.fspath(manifest)}: none of the {len(sample.skipped)} files looked into can be used to slice a "
            f"student ({sample.skipped[0]}); give other audio"
        )
    return sample


def draw_for(
    teacher: FrozenEncoder, manifest: str | os.PathLike, *, count: int, seed: int, seconds: float = SECONDS
) -> Sample:
    """Return :func:`draw_sample` of audio as ``teacher`` takes it."""
    return draw_sample(
        manifest,
        count=count,
        seed=seed,
        normalize=teacher.normalize,
        sample_rate=teacher.sample_rate,
        seconds=seconds,
    )


def _read(path: str, sample_rate: int, seconds: float) -> Tensor | str:
    """The file's first ``seconds``, or why it is of no use."""
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
        return "holds values that are not finite"
    if len(samples) < SHORTEST * sample_rate:
        return f"is shorter than {SHORTEST:g} s"
    if np.abs(samples).max() < SILENCE:
        return "is silent"
    return torch.from_numpy(samples)
