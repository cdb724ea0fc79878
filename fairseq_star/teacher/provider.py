"""The frozen teacher of a run: located, read and hashed once; its states computed, or from a cache."""

import hashlib
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fairseq_star.data.augment.student import teacher_source
from fairseq_star.encoder.frozen import FrozenEncoder
from fairseq_star.encoder.macs import macs_of_sizes
from fairseq_star.encoder.modules import Encoding
from fairseq_star.errors import exit_on_star_error
from fairseq_star.formats import hub, load_teacher, teacher_files
from fairseq_star.formats.student import TEACHER
from fairseq_star.runtime.memory import synchronize
from fairseq_star.teacher.cache.cache import TeacherCache
from fairseq_star.teacher.cache.settings import check_uncached

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TeacherProvider:
    """Provides a teacher's hidden states for the batches of a run.

    Args:
        name: ``task.teacher``: a path, or a HuggingFace id.
        precision: of the teacher's computation, a name of :data:`PRECISIONS`; None: that of its input.
        valid_group_norm: whether an utterance's states are independent of its batch.

    Attributes:
        name: as given, an id with its commit.
        encoder: the teacher.
        digest: of its files' content.
        cache: see :meth:`open_cache`; None: every state is computed.
        timed: whether :attr:`seconds` counts the time in the teacher, for which each batch waits for the device.

    Raises:
        StarError: the teacher is missing or cannot be read.
    """

    def __init__(self, name: str, *, precision: str | None, valid_group_norm: bool):
        located = hub.locate_together(name, "task.teacher")
        self.name = located.name
        self.encoder: FrozenEncoder = load_teacher(located.path, valid_group_norm=valid_group_norm)
        self.digest = teacher_digest(located.path)
        self.valid_group_norm = valid_group_norm
        self.cache: TeacherCache | None = None
        self.timed, self.seconds = False, 0.0
        self._precision = precision
        self._macs = 0.0

    @property
    def record(self) -> dict:
        """Return the entry of a run's checkpoints about its teacher."""
        audio = {"sample_rate": self.encoder.sample_rate, "normalize": self.encoder.normalize}
        return audio | {TEACHER: self.digest}

    def open_cache(self, folder: str | None, *, dtype: str, compression: str, dim: int | None) -> None:
        """Store states in ``folder``; the settings are :class:`TeacherCache`'s. None: nowhere.

        Raises:
            StarError: invalid settings.
        """
        if not folder:
            check_uncached(compression, dim)
            return
        self.cache = TeacherCache(
            folder,
            dtype=dtype,
            teacher=self.encoder,
            digest=self.digest,
            valid_group_norm=self.valid_group_norm,
            compression=compression,
            dim=dim,
        )

    def encode(self, sample: dict, *, states: Sequence[int] | None = None, **wanted) -> Encoding:
        """Return the teacher's encoding of a batch.

        Args:
            sample: a batch of a ``DistillationDataset``, or a part of one.
            states: numbers of the hidden states that will be used (-1 for ``projected_features``, all when None): a
                cache stores and returns no others.
            wanted: see :meth:`FrozenEncoder.forward`.
        """
        source = teacher_source(sample)
        if self.cache is None or "audio_digests" not in sample:  # none: a part of a batch, or a stand-in
            return self.compute(source, sample["num_samples"], **wanted)
        with exit_on_star_error():
            return self.cache.encode(sample, self.compute, precision=self.precision(source), states=states, **wanted)

    def compute(self, source: Tensor, num_samples: Sequence[int], **wanted) -> Encoding:
        """Run the teacher over ``source`` (B x samples), in its own precision; ``wanted`` as in :meth:`encode`."""
        self._macs += float(macs_of_sizes(self.encoder.config, np.asarray(num_samples)).sum())
        if not self.timed:
            return self._compute(source, num_samples, **wanted)
        synchronize(source.device.type)
        start = time.perf_counter()
        encoding = self._compute(source, num_samples, **wanted)
        synchronize(source.device.type)
        self.seconds += time.perf_counter() - start
        return encoding

    def _compute(self, source: Tensor, num_samples: Sequence[int], **wanted) -> Encoding:
        if self._precision is None:
            self.encoder.follow(source)
            return self.encoder(source, num_samples, **wanted)
        self.encoder.follow(source, PRECISIONS[self._precision])
        with torch.autocast(source.device.type, enabled=False):
            return self.encoder(source, num_samples, **wanted)

    def precision(self, source: Tensor) -> str:
        """Name the precision that :meth:`compute` works in, so that a cache does not mix two."""
        if self._precision is not None:
            return self._precision
        device = source.device.type
        if torch.is_autocast_enabled(device):
            return f"autocast to {torch.get_autocast_dtype(device)}"
        return str(source.dtype).removeprefix("torch.")

    def take_macs(self) -> float:
        """Return the multiply-accumulates computed since the last call, counted as a run's throughput counts them."""
        macs, self._macs = self._macs, 0.0
        return macs


def teacher_digest(path: str) -> str:
    """Return the SHA-256 of the content of every file a teacher consists of, wherever they lie and under any name."""
    whole = hashlib.sha256()
    for name in teacher_files(path):
        with open(name, "rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()
