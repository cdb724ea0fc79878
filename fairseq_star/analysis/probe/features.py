"""Features of audio files: filter banks and cepstra as s3prl's baselines, or all layers of a frozen encoder.

Shapes: T frames, L layers (1 for FBANK and MFCC), D dimension.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fairseq_star.analysis.probe.cores import map_on_cores
from fairseq_star.analysis.probe.labels import PHONE, TaskData, Utterance
from fairseq_star.audio.file import open_audio
from fairseq_star.encoder.frames import FrameGeometry
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.errors import StarError
from fairseq_star.manifest import SAMPLE_RATE
from fairseq_star.runtime.torchaudio_import import import_torchaudio

LARGEST = 65_504.0  # of float16
Heard = Callable[[Utterance, Tensor], Tensor]


class Extractor(Protocol):
    """Features of one utterance: T x L x D, and their mean over time for utterance-level tasks, L x D."""

    def __call__(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Both of ``samples``, 1-D audio of ``SAMPLE_RATE`` Hz, on the CPU."""


class SpectralFeatures:
    """80 FBANK (or 13 MFCC) with first and second differences, Kaldi's, at the frames of an encoder.

    Args:
        kind: ``FBANK`` or ``MFCC``.
        geometry: of the encoder's frames, which those here have in their middle: 320 samples apart, 400 seen.
        normalize: each utterance to mean 0 and variance 1 over time, as s3prl's ``fbank`` and ``mfcc`` (their ``cmvn``)
            and SUPERB's tables have it. The mean over time, all that a task of one label an utterance sees, is then 0:
            such tasks are at chance. Without it they see the mean of the bands (or cepstra) alone: that of the
            differences is next to nothing, and the head, which brings all its inputs to one scale, would make noise
            of it.
    """

    def __init__(self, kind: str, geometry: FrameGeometry, *, normalize: bool = True):
        torchaudio = import_torchaudio()
        self.geometry, self.normalize = geometry, normalize
        self.deltas = torchaudio.functional.compute_deltas
        kaldi = torchaudio.compliance.kaldi
        self.compute, self.settings = {
            "FBANK": (kaldi.fbank, {"num_mel_bins": 80}),
            "MFCC": (kaldi.mfcc, {"use_energy": False}),
        }[kind]

    def __call__(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Extractor`; L is 1, and the mean of features of mean 0 is given as 0."""
        window, shift = self.geometry.receptive_field, self.geometry.downsample_rate
        static = self.compute(
            samples[None],
            sample_frequency=SAMPLE_RATE,
            frame_length=window / SAMPLE_RATE * 1000,
            frame_shift=shift / 2 / SAMPLE_RATE * 1000,
            **self.settings,
        ).T  # D x 2T: twice the frame rate, so that differences see what s3prl's see
        first = self.deltas(static)
        features = torch.cat([static, first, self.deltas(first)]).T[::2]
        features = features[: self.geometry.num_frames(len(samples))]
        if not self.normalize:
            return features[:, None], static.mean(1)[None]
        normalized = (features - features.mean(0)) / features.std(0, correction=0).clamp_min(1e-5)
        # Not computed: what rounding leaves of a mean of 0 would be noise that a head could still learn from.
        return normalized[:, None], torch.zeros(1, features.size(1))


class EncoderFeatures:
    """The input of the first layer and the output of each of a frozen encoder, an utterance at a time."""

    def __init__(self, encoder: FrozenEncoder, device: str):
        self.encoder = encoder.to(device)

    def __call__(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Extractor`; every hidden state is a layer, audio normalized where the encoder hears it so."""
        encoding = self.encoder.encode_one(samples)
        states = torch.cat([state.float() for state in encoding.hidden_states]).transpose(0, 1).cpu()  # T x L x D
        return states, states.mean(0)


class FeatureStore:
    """Features of all utterances that some tasks need, computed once: frames as float16 in a temporary file, since they
    need not fit into memory, means over time in memory.

    Args:
        extract: the features.
        tasks: whose utterances; frames are kept for the phone task alone.
        description: for the progress bar.
        heard: what is heard of an utterance's samples, with noise for example, as its ``condition`` says; the samples
            themselves when None.

    Raises:
        StarError: an audio file cannot be read or has not the length the manifest says.
    """

    def __init__(self, extract: Extractor, tasks: Sequence[TaskData], description: str, heard: Heard | None = None):
        self._file = tempfile.TemporaryFile(prefix="fairseq_star_probe_")  # noqa: SIM115
        self._means: dict[tuple[str, str], Tensor] = {}  # by sound
        self._spans: dict[tuple[str, str], tuple[int, int]] = {}  # first frame, number of frames
        self._shape: tuple[int, ...] = ()  # of a frame's features: L x D
        wanted = {one.sound: one for task in tasks for one in task.utterances}
        by_frame = {one.sound for task in tasks if task.task == PHONE for one in task.utterances}
        filled = 0

        def features_of(one: Utterance) -> tuple[Tensor, Tensor]:
            samples = read_samples(one)
            return extract(heard(one, samples) if heard else samples)

        extracted = map_on_cores(features_of, wanted.values())
        extracted = tqdm(extracted, description, len(wanted), unit="utt", leave=False, disable=None)
        for sound, (features, self._means[sound]) in zip(wanted, extracted, strict=True):
            if sound not in by_frame:
                continue
            self._spans[sound], self._shape = (filled, len(features)), features.shape[1:]
            self._file.write(features.clamp(-LARGEST, LARGEST).half().contiguous().numpy())
            filled += len(features)

    def inputs(self, task: TaskData, utterances: Sequence[Utterance]) -> tuple[Tensor, Tensor]:
        """Features (N x L x D, float16 for frames) and class numbers (N) of utterances, in their order."""
        classes = torch.tensor([number for one in utterances for number in task.class_numbers(one)])
        if task.task == PHONE:
            return torch.from_numpy(self._read([self._spans[one.sound] for one in utterances])), classes
        return torch.stack([self._means[one.sound] for one in utterances]), classes

    def close(self) -> None:
        """Delete the file."""
        self._file.close()

    def _read(self, spans: Sequence[tuple[int, int]]) -> np.ndarray:
        # Not mapped into memory, where what was read would lie a second time.
        frames = np.empty((sum(count for _, count in spans), *self._shape), np.float16)
        place = 0
        for first, count in spans:
            part = frames[place : place + count]
            self._file.seek(first * part.itemsize * math.prod(self._shape))
            self._file.readinto(memoryview(part).cast("B"))
            place += count
        return frames


def read_samples(utterance: Utterance) -> Tensor:
    """An utterance's samples, float32.

    Raises:
        StarError: unreadable, or not mono audio of 16 kHz and of the manifest's length.
    """
    import soundfile

    try:
        with open_audio(utterance.path) as audio:
            samples, rate = audio.read(dtype="float32"), audio.samplerate
    except (soundfile.SoundFileError, OSError) as error:
        raise StarError(f"{utterance.path}: cannot be read as audio ({error}); restore it or its manifest") from error
    if rate != SAMPLE_RATE or samples.ndim != 1 or len(samples) != utterance.num_samples:
        raise StarError(
            f"{utterance.path}: has shape {samples.shape} at {rate} Hz; the manifest says {utterance.num_samples} mono "
            f"samples, of {SAMPLE_RATE} Hz; write it anew"
        )
    return torch.from_numpy(samples)
