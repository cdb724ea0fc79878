"""Features of audio files: filter banks and cepstra as s3prl's baselines, or all layers of a frozen encoder.

Shapes: T frames, L layers (1 for FBANK and MFCC), D width.
"""

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fairseq_star.analysis.probe.labels import PHONE, TaskData, Utterance
from fairseq_star.audio.file import open_audio
from fairseq_star.audio.threads import in_order
from fairseq_star.data.bad_audio import NOT_FINITE, all_finite
from fairseq_star.encoder.frames import FrameGeometry
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.errors import StarError
from fairseq_star.manifest import SAMPLE_RATE
from fairseq_star.runtime.torchaudio_import import import_torchaudio

LARGEST = 65_504.0  # of float16
Transform = Callable[[Utterance, Tensor], Tensor]  # of an utterance's samples, such as adding noise
Item = TypeVar("Item")
Result = TypeVar("Result")


def map_on_cores(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield the function's results in order, as many items at once as torch has threads, one thread each.

    Many small operations run faster side by side than each on all threads. Only a few items are in memory at a time.

    Args:
        function: of one item; thread-safe. It runs in torch's default gradient mode, whatever the caller's is.
        items: any iterable.

    Raises:
        Exception: the first that the function raised; items that have not started by then never do.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that start from here on inherit this number
    try:
        yield from in_order(function, items, num_threads, max_pending=num_threads + 1)
    finally:
        torch.set_num_threads(num_threads)


class Extractor(Protocol):
    """Features of one utterance: T x L x D, and their mean over time for utterance-level tasks, L x D."""

    def __call__(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Compute both from 1-D audio of ``SAMPLE_RATE`` Hz; they are on the CPU."""


class SpectralFeatures:
    """80 FBANK (or 13 MFCC) with first and second differences, Kaldi's, at the frames of an encoder.

    Args:
        kind: ``FBANK`` or ``MFCC``.
        geometry: the encoder's frames (320 samples apart, 400 wide); frames here have the same centres.
        normalize: normalize each utterance to mean 0 and variance 1 over time, as s3prl's ``fbank`` and ``mfcc`` (their
            ``cmvn``) and SUPERB's tables do. The mean over time, the only input of tasks of one label an utterance, is
            then 0, and such tasks are at chance. Without normalization their input is the mean of the bands (or
            cepstra) alone: that of the differences is next to nothing, which the head's scaling would make noise of.
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
        """See :class:`Extractor`; L is 1, and the mean of normalized features is exactly 0."""
        window, shift = self.geometry.receptive_field, self.geometry.downsample_rate
        static = self.compute(
            samples[None],
            sample_frequency=SAMPLE_RATE,
            frame_length=window / SAMPLE_RATE * 1000,
            frame_shift=shift / 2 / SAMPLE_RATE * 1000,
            **self.settings,
        ).T  # D x 2T: s3prl's differences are at twice the frame rate
        first = self.deltas(static)
        features = torch.cat([static, first, self.deltas(first)]).T[::2]
        features = features[: self.geometry.num_frames(len(samples))]
        if not self.normalize:
            return features[:, None], static.mean(1)[None]
        normalized = (features - features.mean(0)) / features.std(0, correction=0).clamp_min(1e-5)
        # Not computed: rounding errors around 0 are noise that a head could still learn from.
        return normalized[:, None], torch.zeros(1, features.size(1))


class EncoderFeatures:
    """A frozen encoder's hidden states, the first layer's input and each layer's output, one utterance at a time."""

    def __init__(self, encoder: FrozenEncoder, device: str):
        self.encoder = encoder.to(device)

    def __call__(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Extractor`; every hidden state is a layer. Audio is normalized where the encoder expects that."""
        encoding = self.encoder.encode_one(samples)
        states = torch.cat([state.float() for state in encoding.hidden_states]).transpose(0, 1).cpu()  # T x L x D
        return states, states.mean(0)


class FeatureStore:
    """Features of all utterances of some tasks, computed once: frames as float16 in a temporary file, since they need
    not fit into memory, means over time in memory.

    Args:
        extract: the features.
        tasks: the tasks; only the phone task's frames are stored.
        description: for the progress bar.
        transform: applied to an utterance's samples first, by its ``condition``; None leaves them as they are.

    Raises:
        StarError: an audio file cannot be read or does not have the manifest's number of samples.
    """

    def __init__(
        self, extract: Extractor, tasks: Sequence[TaskData], description: str, transform: Transform | None = None
    ):
        self._file = tempfile.TemporaryFile(prefix="fairseq_star_probe_")  # noqa: SIM115
        self._means: dict[tuple[str, str], Tensor] = {}  # by Utterance.key
        self._spans: dict[tuple[str, str], tuple[int, int]] = {}  # first frame, number of frames
        self._shape: tuple[int, ...] = ()  # of a frame's features: L x D
        wanted = {one.key: one for task in tasks for one in task.utterances}
        by_frame = {one.key for task in tasks if task.task == PHONE for one in task.utterances}
        num_frames = 0

        def features_of(one: Utterance) -> tuple[Tensor, Tensor]:
            samples = read_samples(one)
            return extract(transform(one, samples) if transform else samples)

        extracted = map_on_cores(features_of, wanted.values())
        extracted = tqdm(extracted, description, len(wanted), unit="utt", leave=False, disable=None)
        for key, (features, self._means[key]) in zip(wanted, extracted, strict=True):
            if key not in by_frame:
                continue
            self._spans[key], self._shape = (num_frames, len(features)), features.shape[1:]
            self._file.write(features.clamp(-LARGEST, LARGEST).half().contiguous().numpy())
            num_frames += len(features)

    def inputs(self, task: TaskData, utterances: Sequence[Utterance]) -> tuple[Tensor, Tensor]:
        """Return features (N x L x D, float16 for frames) and class numbers (N) of utterances, in their order."""
        classes = torch.tensor([number for one in utterances for number in task.class_numbers(one)])
        if task.task == PHONE:
            return torch.from_numpy(self._read([self._spans[one.key] for one in utterances])), classes
        return torch.stack([self._means[one.key] for one in utterances]), classes

    def close(self) -> None:
        self._file.close()

    def _read(self, spans: Sequence[tuple[int, int]]) -> np.ndarray:
        # Not a memory map, whose pages would take the same memory again.
        frames = np.empty((sum(count for _, count in spans), *self._shape), np.float16)
        place = 0
        for first, count in spans:
            part = frames[place : place + count]
            self._file.seek(first * part.itemsize * math.prod(self._shape))
            self._file.readinto(memoryview(part).cast("B"))
            place += count
        return frames


def read_samples(utterance: Utterance) -> Tensor:
    """Read an utterance's samples, float32.

    Raises:
        StarError: unreadable, not finite, or not mono audio of 16 kHz with the manifest's number of samples.
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
    samples = torch.from_numpy(samples)
    if not all_finite(samples):
        raise StarError(f"{utterance.path}: {NOT_FINITE}")
    return samples
