"""Audio for distillation: fairseq's own dataset, with exact lengths and crops that a resumed run repeats."""

import hashlib
import logging
import os
import sys
from collections import deque
from itertools import islice
from typing import Any, Protocol, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from fairseq.data import FileAudioDataset
from torch import Tensor

from fairseq_star.audio.file import check_audio, open_audio
from fairseq_star.data.augment.student import StudentAugmentation
from fairseq_star.data.bad_audio import NOT_FINITE, all_finite, what_is_wrong
from fairseq_star.errors import StarError
from fairseq_star.manifest import stream_manifest
from fairseq_star.runtime.signals import outlive_foreign_sigterm

logger = logging.getLogger(__name__)
PREFETCH_FACTOR = 2  # batches that each data worker is ahead: torch's default, and so a run's


class StoredStates(Protocol):
    """Teacher states stored in a cache, read in the data workers (``teacher/cache/read_ahead.py``)."""

    def read(self, digest: str, num_samples: int) -> Any:
        """Read an utterance's entry, by its :func:`audio_digest`."""

    def collate(self, read: Sequence[Any], num_samples: int) -> dict:
        """Return the additions to a batch padded to ``num_samples``, from the entries of its utterances."""


class DistillationDataset(FileAudioDataset):
    """fairseq's ``FileAudioDataset``, padded to the longest utterance of a batch.

    A batch is ``{"id", "num_samples", "paths", "net_input": {"source"}}``: ``source`` is B x samples, ``num_samples`` a
    list of plain numbers, so that it stays on the host where slices and frame counts are made from it. With ``digests``
    there is also ``audio_digests``, a list of :func:`audio_digest`, and with ``read_ahead`` what a teacher cache holds
    of the batch (:class:`StoredStates`). With ``augment`` the source is the student's input, and the batch has the
    keys described in :mod:`fairseq_star.data.augment.student`.

    A file that cannot be read, or is not what the manifest says, raises nothing, since that may happen in a data
    worker: its item has ``source`` None, and its sentence comes in the batch's ``bad_audio``, a list. A batch without
    any good utterance has no ``net_input`` (:mod:`fairseq_star.data.bad_audio`).
    """

    def __init__(
        self,
        manifest_path: str,
        *,
        sample_rate: int,
        normalize: bool,
        max_sample_size: int | None,
        min_sample_size: int,
        random_crop: bool,
        pad_to_multiple: int,
        seed: int,
        digests: bool = False,
        read_ahead: StoredStates | None = None,
        augment: StudentAugmentation | None = None,
    ):
        super().__init__(
            manifest_path,
            sample_rate=sample_rate,
            max_sample_size=max_sample_size,
            min_sample_size=min_sample_size,
            pad=True,
            normalize=normalize,
        )
        self.manifest = manifest_path
        self.root_dir = stream_manifest(manifest_path)[0]  # fairseq takes a byte order mark for a part of it
        self.random_crop = random_crop
        self.pad_to_multiple = pad_to_multiple
        self.seed = seed
        self.digests = digests
        self.read_ahead = read_ahead
        self.augment = augment
        # In shared memory: data workers that persist across epochs read the current one from it.
        self._epoch = torch.ones((), dtype=torch.int64).share_memory_()
        if not len(self):
            raise StarError(
                f"{manifest_path}: no utterance of at least {min_sample_size} samples (task.min_sample_size) is left"
            )
        if augment is not None:
            augment.check(self.cropped_lengths(), self.path)

    @property
    def epoch(self) -> int:
        """The epoch that crops, masks and noise are drawn for, in this process and in its data workers."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch; utterances that workers still read for the previous one are drawn for this one."""
        self._epoch.fill_(epoch)

    def size(self, index: int) -> int:
        """Return an utterance's samples after cropping, which fairseq's ``max_tokens`` counts."""
        return min(int(self.sizes[index]), self.max_sample_size)

    def ordered_indices(self) -> np.ndarray:
        """Return the utterances, longest first; ties are in an order that depends on the seed alone: fairseq's also
        depends on the epoch in which the run was started, so that a resumed run would form other batches."""
        ties = np.random.default_rng(self.seed).permutation(len(self))
        return np.lexsort((ties, self.cropped_lengths()))[::-1]

    def cropped_lengths(self) -> np.ndarray:
        """Return the samples of each utterance after cropping."""
        return np.minimum(self.sizes, self.max_sample_size)

    def padded_samples(self, indices: Sequence[int]) -> int:
        """Return the samples of a batch of these utterances, padding included."""
        longest = min(int(self.sizes[np.asarray(indices)].max()), self.max_sample_size)
        return len(indices) * (-(-longest // self.pad_to_multiple) * self.pad_to_multiple)

    def batch_by_size(self, indices, max_tokens=None, max_sentences=None, required_batch_size_multiple=1):
        """Return batches of all utterances: with a multiple above 1 (8 by default) fairseq-fixed 0.12.3 silently drops
        the utterances that do not fill one.

        Raises:
            StarError: an utterance is longer than ``max_tokens`` samples.
        """
        longest = indices[np.argmax(self.cropped_lengths()[indices])]
        if max_tokens is not None and self.size(longest) > max_tokens:
            raise StarError(
                f"dataset.max_tokens={max_tokens} (in validation dataset.max_tokens_valid) is below the "
                f"{self.size(longest)} samples of {self.path(longest)}; raise it to that or more, or crop with "
                f"task.max_sample_size={max_tokens}"
            )
        return super().batch_by_size(indices, max_tokens, max_sentences, required_batch_size_multiple=1)

    def filter_indices_by_size(self, indices, max_sizes):
        """Return all: fairseq would leave out those that are above ``max_tokens`` before they are cropped."""
        return indices, []

    def __getitem__(self, index: int) -> dict:
        outlive_foreign_sigterm()
        path = self.path(index)
        try:
            item = self._read(index)
        except Exception as error:  # fairseq raises nothing more exact
            problem = what_is_wrong(path, self.sample_rate, int(self.sizes[index]), error)
            return {"id": index, "source": None, "bad_audio": problem}
        if problem := self._problem(item["source"], index):
            return {"id": index, "source": None, "bad_audio": f"{path}: {problem}"}
        item["path"] = path
        item["source"] = self._crop(item["source"], int(index))
        if self.digests:
            item["audio_digest"] = audio_digest(item["source"])
        if self.read_ahead is not None:
            item["stored"] = self.read_ahead.read(item["audio_digest"], len(item["source"]))
        if self.augment is not None:
            try:
                item |= self.augment.apply(
                    item["source"], epoch=self.epoch, index=int(index), others=self._other, count=len(self)
                )
            except Exception as error:  # of another file, which is mixed into this one
                return {"id": index, "source": None, "bad_audio": f"{path}: nothing can be mixed into it ({error})"}
        return item

    def _read(self, index: int) -> dict:
        return self._beside_leftover(self.path(index), index) or super().__getitem__(index)

    def _other(self, index: int) -> Tensor:
        """Return the samples of an utterance that is mixed into another one."""
        return self._read(index)["source"]

    def _beside_leftover(self, path: str, index: int) -> dict | None:
        """Read a file with macOS's leftover ``._NAME`` next to it, which libsndfile may open when given the name."""
        folder, name = os.path.split(path)
        if not os.path.exists(os.path.join(folder, f"._{name}")):
            return None
        with open_audio(path) as audio:
            source = torch.from_numpy(audio.read(dtype="float32"))
            return {"id": index, "source": self.postprocess(source, audio.samplerate)}

    def path(self, index: int) -> str:
        """Return an utterance's path; that of an archive's entry with offset and size."""
        name = self.fnames[index]
        name = name if isinstance(self.fnames, list) else name.as_py()
        return os.path.join(self.root_dir, self.text_compressor.decompress(name))

    def _problem(self, source: Tensor, index: int) -> str | None:
        """Return a fault that libsndfile does not report: a WAV file cut short simply ends earlier."""
        if len(source) != self.sizes[index]:
            return f"holds {len(source)} samples but the manifest says {self.sizes[index]}; restore the file"
        return None if all_finite(source) else NOT_FINITE

    def postprocess(self, feats: Tensor, curr_sample_rate: int) -> Tensor:
        """Return the samples as fairseq's data set does, normalized if ``normalize`` is set.

        Raises:
            StarError: they are not mono.
        """
        if feats.dim() != 1:
            raise StarError(f"an audio file of {self.root_dir} has {feats.size(-1)} channels; it must be mono")
        return super().postprocess(feats, curr_sample_rate)

    def _crop(self, source: Tensor, index: int) -> Tensor:
        """Crop to ``max_sample_size``, at an offset that depends on seed, epoch and utterance alone: a resumed run, or
        one with other workers, gets the same samples."""
        excess = len(source) - self.max_sample_size
        if excess <= 0:
            return source
        start = 0
        if self.random_crop:
            start = int(np.random.default_rng((self.seed, self.epoch, index)).integers(excess + 1))
        return source[start : start + self.max_sample_size]

    def collater(self, samples: list[dict]) -> dict:
        """Return a padded batch (``net_input``) of the readable utterances, their sample counts and paths, and a
        sentence for each other one."""
        good = [sample for sample in samples if sample["source"] is not None]
        batch = super().collater(good)
        batch["bad_audio"] = [sample["bad_audio"] for sample in samples if sample["source"] is None]
        if good:
            batch["num_samples"] = [len(sample["source"]) for sample in good]
            batch["paths"] = [sample["path"] for sample in good]
            if self.digests:
                batch["audio_digests"] = [sample["audio_digest"] for sample in good]
            source = batch["net_input"]["source"]
            # Not fairseq's buckets: np.percentile lost the argument they need with numpy 2.
            batch["net_input"] = {"source": F.pad(source, (0, -source.size(1) % self.pad_to_multiple))}
            if self.read_ahead is not None:
                width = batch["net_input"]["source"].size(1)
                batch |= self.read_ahead.collate([sample["stored"] for sample in good], width)
            if self.augment is not None:
                self.augment.collate(good, batch)
        return batch


def audio_digest(source: Tensor) -> str:
    """Return 64 hexadecimal digits that identify these samples (float32, one utterance, the teacher's input).

    They name an utterance in the teacher cache. Unlike path, size and time they cannot be out of date. They take about
    1 ms for 16 s, against some 30 ms of decoding, in the data workers.
    """
    return hashlib.blake2b(source.contiguous().numpy(), digest_size=32).hexdigest()


def check_manifest(path: str, *, sample_rate: int, rank: int = 0, world_size: int = 1, headers: bool = True) -> None:
    """Refuse a manifest that would end a run later.

    Every line is read, and every ``world_size``-th file's header from ``rank`` on, so that the ranks share the work.

    Raises:
        StarError: names the line or the first bad file, and how many there are.
    """
    root, entries = stream_manifest(path)
    if not headers:
        deque(entries, maxlen=0)
        return
    share = islice(entries, rank, None, world_size)
    first, more = "", 0
    for problem in check_audio(root, share, sample_rate, progress=rank == 0 and sys.stderr.isatty()):
        if not first:
            first = problem
            continue
        more += 1
        if more <= 20:
            logger.error(problem)
    if first:
        others = f" ({more} more such files, the first of them logged above)" if more else ""
        raise StarError(f"{first}{others}; listed in {os.path.basename(path)}")
